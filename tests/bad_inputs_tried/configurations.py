"""Configurations and options that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bad_inputs_tried.case import WORKS, Case, Outcome, World

__all__ = ["CASES"]


def option(
    words: str,
    expect: str = WORKS,
    *,
    check: Callable[[World, Outcome], str] | None = None,
    keeps: str = "",
) -> Case:
    """A training with one more option."""
    shown = words if len(words) < 80 else f"{words[:40]}... ({len(words)} characters)"
    return Case(
        shown, "option", f"`{shown}`", f"fit {{data}} {words}", expect, check=check, keeps=keeps
    )


def trained(world: World, outcome: Outcome) -> str:
    assert [path for path in outcome.new if path.endswith("last.ckpt")]
    return "trains"


def yaml(name: str, wrong: str, text: str | bytes, expect: str) -> Case:
    """A training with one more configuration."""

    def make(world: World) -> None:
        Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return Case(name, "configuration", wrong, "fit {data} -c bad.yaml", expect, make=make)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
LOOP = "trainer: &t\n  plugins: *t\n"

RUN = r"^runs/tiny/version_0(/(config|hparams)\.yaml)?$"  # what a run says about itself

CASES = [
    yaml(
        "no-yaml",
        "no YAML: a bracket is open",
        "trainer: {max_epochs: 3\n",
        r"bad\.yaml, line 2: not YAML \(expected ',' or '\}', but got '<stream end>'\);",
    ),
    yaml(
        "tab",
        "a tab for indentation",
        "trainer:\n\tmax_epochs: 3\n",
        r"bad\.yaml, line 2: not YAML \(found character '\\t' that cannot start any",
    ),
    yaml(
        "nothing",
        "an empty configuration",
        "",
        r"bad\.yaml holds nothing; it needs keys such as model, data or trainer\.",
    ),
    yaml(
        "list",
        "a list in place of keys",
        "- 1\n",
        r"bad\.yaml holds a list; it needs keys such as model, data or trainer\.",
    ),
    yaml(
        "latin1",
        "a configuration that is not UTF-8",
        b"# caf\xe9\ntrainer: {}\n",
        r"bad\.yaml, line 1: byte 0xe9 is not UTF-8; convert the file to UTF-8\.",
    ),
    yaml(
        "bom",
        "a configuration in UTF-16",
        "trainer: {}\n".encode("utf-16"),
        r"bad\.yaml, line 1: byte 0xff is not UTF-8; convert the file to UTF-8\.",
    ),
    yaml(
        "control",
        "a NUL byte in a configuration",
        "trainer: {max_epochs: 1\0}\n",
        r"bad\.yaml: not YAML \(unacceptable character #x0000: special characters are",
    ),
    yaml(
        "twice",
        "a key twice",
        "trainer:\n  max_epochs: 1\n  max_epochs: 3\n",
        r"bad\.yaml, line 3: the key 'max_epochs' stands here for the second time;",
    ),
    yaml(
        "bomb",
        "anchors that stand for a billion values",
        BOMB,
        r"bad\.yaml: its aliases \(\*name\) stand for more than 100,000 values; write",
    ),
    yaml(
        "loop",
        "an anchor within itself",
        LOOP,
        r"bad\.yaml: its aliases \(\*name\) stand for more than 100,000 values; write",
    ),
    yaml(
        "deep",
        "ten thousand brackets",
        "trainer: " + "[" * 10_000 + "\n",
        r"bad\.yaml: its brackets or lists are nested too deep\.",
    ),
    yaml(
        "python",
        "a Python object in YAML",
        "trainer: !!python/object/apply:os.mkdir [ran]\n",
        r"bad\.yaml, line 1: not YAML \(could not determine a constructor for the tag",
    ),
    yaml(
        "documents",
        "two documents in one file",
        "trainer: {}\n---\ntrainer: {}\n",
        r"bad\.yaml, line 2: not YAML \(but found another document\); brackets and",
    ),
    yaml(
        "unknown-key",
        "a misspelled key",
        "trainer:\n  max_epoch: 3\n",
        r"bad\.yaml, line 2: unknown key 'max_epoch'; did you mean",
    ),
    yaml(
        "unknown-section",
        "a misspelled section",
        "modl:\n  class_path: X\n",
        r"bad\.yaml, line 1: unknown key 'modl'; did you mean 'model'\?",
    ),
    yaml(
        "deep-key",
        "a misspelled key of a model",
        "# two\n\nmodel:\n  init_args:\n    d_modl: 3\n",
        r"bad\.yaml, line 5: unknown key 'd_modl' of TransformerSeq2Seq; did you mean",
    ),
    yaml(
        "unknown-class",
        "a misspelled class",
        "model:\n  class_path: RnSeq2Seq\n",
        r"bad\.yaml, line 2: there is no class 'RnSeq2Seq'; did you mean",
    ),
    yaml(
        "text-for-number",
        "a word for a number",
        "model: {init_args: {d_model: wide}}\n",
        r"bad\.yaml, line 1: d_model must be int, got 'wide'\.",
    ),
    yaml(
        "nan",
        "not-a-number as learning rate",
        "model: {init_args: {lr: .nan}}\n",
        r"lr must be a finite number, got nan\.",
    ),
    yaml(
        "inf",
        "an infinite learning rate",
        "model: {init_args: {lr: .inf}}\n",
        r"lr must be a finite number, got inf\.",
    ),
    yaml(
        "os-system",
        "a function of the system in place of a class",
        "model: {init_args: {lr_scheduler: os.system}}\n",
        r"bad\.yaml, line 1: os\.system is not imported: a configuration may name what",
    ),
    yaml(
        "code",
        "a class of somebody's own that is not allowed",
        "trainer: {callbacks: [{class_path: somebodys.Callback}]}\n",
        r"bad\.yaml, line 1: somebodys\.Callback is not imported: a configuration may",
    ),
    yaml(
        "allow",
        "a configuration that allows imports by itself",
        "allow_import: [somebodys]\n",
        r"bad\.yaml, line 1: unknown key 'allow_import'; 'litseq fit --help' lists",
    ),
    yaml(
        "hidden-class",
        "a class within a value of any kind",
        "trainer:\n  logger:\n    class_path: lightning.pytorch.loggers.CSVLogger\n"
        "    init_args: {save_dir: {class_path: os.mkdir}}\n",
        "save_dir must be str, got",
    ),
    Case(
        "folder",
        "configuration",
        "a folder in place of a configuration",
        "fit -c {home}",
        r" is a folder; give a configuration file\.",
    ),
    Case(
        "missing",
        "configuration",
        "a configuration that is not there",
        "fit -c {home}/dta.yaml",
        r"no configuration file at .*dta\.yaml; beside it: data\.yaml, model\.yaml\.",
    ),
    Case(
        "fifo",
        "configuration",
        "a device in place of a configuration",
        "fit -c /dev/null",
        r"/dev/null holds nothing; it needs keys such as model, data or trainer\.",
    ),
    Case(
        "no-model",
        "configuration",
        "no model is named",
        "fit -c {home}/data.yaml",
        "no model given; name a configuration with -c, or --model",
    ),
    Case(
        "no-command",
        "configuration",
        "a misspelled command",
        "fiit",
        "there is no command 'fiit'; choose among fit, validate, test, predict,",
    ),
    Case(
        "no-option",
        "configuration",
        "a misspelled option of translate",
        "translate --ckpt {ckpt} --beam 3",
        r"--beam: unknown key 'beam'; did you mean 'beam_size'\?",
    ),
    option("--model.d_model 0", r"d_model must be at least 1, got 0; give a positive number\."),
    option("--model.d_model -12", r"d_model must be at least 1, got -12; give a positive number\."),
    option(
        "--model.d_model 13",
        "d_model must be even for sinusoidal positions, got 13; choose an even",
    ),
    option(
        "--model.d_model 14", "d_model must be divisible by num_heads, got d_model=14, num_heads=3;"
    ),
    option(
        "--model.d_model 1000000000000",
        r"d_model must be at most 10,000,000, got 1,000,000,000,000\.",
    ),
    option(
        "--model.d_model 99999999999999999999999999",
        r"d_model must be at most 10,000,000, got 99,999,999,999,999,999,999,999,999\.",
    ),
    option("--model.d_model 2.5", r"--model\.d_model: d_model must be int, got '2\.5'\."),
    option(
        "--model.num_heads 0",
        "d_model must be divisible by num_heads, got d_model=24, num_heads=0;",
    ),
    option(
        "--model.num_encoder_layers -1",
        r"num_encoder_layers must be at least 1, got -1; give a positive number\.",
    ),
    option("--model.num_encoder_layers 1000000000", "must be at most"),
    option(
        "--model.max_positions 1000000000000",
        r"max_positions must be at most 10,000,000, got 1,000,000,000,000\.",
    ),
    option("--model.dropout 2", r"dropout must be in \[0, 1\), got 2\.0; 0 switches it off\."),
    option("--model.dropout nan", r"--model\.dropout: dropout must be float, got 'nan'\."),
    option("--model.lr -1", r"Invalid learning rate: -1\.0"),
    option("--model.lr nan", r"--model\.lr: lr must be float, got 'nan'\."),
    option("--model.lr inf", r"--model\.lr: lr must be float, got 'inf'\."),
    option("--model.lr 1e400", r"lr must be a finite number, got inf\."),
    option(
        "--model.label_smoothing nan",
        r"--model\.label_smoothing: label_smoothing must be float, got 'nan'\.",
    ),
    option(
        "--model.weight_decay nan",
        r"--model\.weight_decay: weight_decay must be float, got 'nan'\.",
    ),
    option("--model.betas [0.9,1.5]", r"Invalid beta parameter at index 1: 1\.5"),
    option("--model.betas [nan,0.9]", r"--model\.betas: betas must be float, got 'nan'\."),
    option("--model.eps nan", r"--model\.eps: eps must be float, got 'nan'\."),
    option("--model.warmup_steps -1", r"warmup_steps must be at least 0, got -1\."),
    option("--model.beam_size 0", r"beam_size must be at least 1, got 0; 1 is greedy search\."),
    option(
        "--model.length_penalty nan",
        r"--model\.length_penalty: length_penalty must be float, got 'nan'\.",
    ),
    option(
        "--model.max_len_b -1",
        r"max_len_b must be a number of at least 0, got -1; the default is 50\.",
    ),
    option(
        "--model.schedule cosin",
        r"--model\.schedule: schedule must be one of 'inverse_sqrt', 'linear',",
    ),
    option("--data.vocab_size 0", "vocab_size must be at least 1, got 0"),
    option("--data.eval_max_tokens -5", "eval_max_tokens must be at least 1, got -5"),
    option("--data.max_sentences 0", "max_sentences must be at least 1, got 0"),
    option("--data.max_length_ratio 0.5", r"max_length_ratio must be at least 1, got 0\.5"),
    option("--data.max_chars 0", "max_chars must be at least 1, got 0"),
    option("--data.num_proc 0", "num_proc must be at least 1, got 0"),
    option("--data.seed -1", "seed must be at least 0, got -1"),
    option("--data.subword_sampling -0.1", r"subword_sampling must be at least 0, got -0\.1"),
    option(
        "--data.subword_sampling 2",
        r"subword_sampling is a probability .* got 2\.0; give one up to 1, such as 0\.1",
    ),
    option(
        "--data.character_coverage 2", r"character_coverage must lie between 0\.98 and 1, got 2\.0"
    ),
    option("--data.tokenizer nowhere.model", r"no tokenizer at nowhere\.model; give a folder, a"),
    option("--data.val_size 3", "not both"),
    option("--data.shuffle_buffer 0", "shuffle_buffer must be at least 1, got 0"),
    option(
        "--data.streaming true --data.drop_duplicates true",
        "drop_duplicates compares all pairs, which streaming never has; leave one out",
    ),
    option(
        "--data.streaming true --data.val null --data.val_size 3",
        "streaming reads train while one trains, but val_size and test_size cut it before; give",
    ),
    option(
        "--data.streaming true --model.schedule cosine",
        "needs the number of steps of the run; set max_steps, or max_epochs where data are not",
    ),
    option("--model.num_decoder_layers 0", "num_decoder_layers must be at least 1, got 0"),
    option("--model.dim_feedforward -3", "dim_feedforward must be at least 1, got -3"),
    option(
        "--model.attention_dropout 2", r"dropout on attention weights must be in \[0, 1\), got 2\.0"
    ),
    option("--model.max_positions 0", "max_positions must be at least 1, got 0"),
    option(
        "--model.vocab_size 0", r"vocab_size is 0 but the tokenizer \(sha256 \w+\) has 64; leave"
    ),
    option(
        "--model.label_smoothing 2", r"label_smoothing must be at least 0 and below 1, got 2\.0"
    ),
    option("--model.weight_decay -1", r"Invalid weight_decay value: -1\.0"),
    option(
        "--model.n_best 9", "n_best must lie between 1 and beam_size, got n_best=9, beam_size=4"
    ),
    option(
        "--model.length_penalty -1", r"length_penalty must be a number of at least 0, got -1\.0"
    ),
    option("--model.length_offset -1", r"length_offset must be a number of at least 0, got -1\.0"),
    option(
        "--trainer.callbacks+ litseq.NonFiniteGuard --trainer.callbacks+ litseq.NonFiniteGuard",
        "NonFiniteGuard stands twice among trainer.callbacks, with the same settings; remove one",
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.hidden_size 0", "hidden_size must be at least 1, got 0"
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.embedding_dim -4",
        "embedding_dim must be at least 1, got -4",
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.num_layers 0", "num_layers must be at least 1, got 0"
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.dropout 1.5", r"dropout must be in \[0, 1\), got 1\.5"
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.tie_output true",
        "tie_output needs embedding_dim == hidden_size, got 256 and 512",
    ),
    option(
        "--model RnnAttentionSeq2Seq --model.score dot",
        "score 'dot' compares vectors of one size, got .* 512 and .* 1024",
    ),
    option(
        "--model.schedule cosine --trainer.max_epochs -1", "cosine schedule needs the number of"
    ),
    option("--trainer.max_epochs -5", "`max_epochs` must be a non-negative integer or -1"),
    option(
        "--data.vocab_size 50000",
        "vocab_size=50000 is too large for the en and de training text; set it to",
    ),
    option(
        "--data.vocab_size 5",
        "vocab_size=5 is smaller than the 27 single characters and special pieces",
    ),
    option(
        "--data.vocab_size 99999999999999",
        r"vocab_size must be at most 2,147,483,647, got 99,999,999,999,999\.",
    ),
    option("--data.max_tokens 0", r"max_tokens must be at least 1, got 0\."),
    option("--data.max_tokens 1", check=trained),
    option(
        "--data.max_src_len 1",
        "max_src_len and max_tgt_len count EOS and must be at least 2, got 1 and",
    ),
    option(
        "--data.max_length_ratio nan",
        r"--data\.max_length_ratio: max_length_ratio must be float or null, got 'nan'\.",
    ),
    option("--data.num_workers -1", r"num_workers must be at least 0, got -1\."),
    option(
        "--data.character_coverage nan",
        r"--data\.character_coverage: character_coverage must be float, got 'nan'\.",
    ),
    option(
        "--data.subword_sampling nan",
        r"--data\.subword_sampling: subword_sampling must be float, got 'nan'\.",
    ),
    option(
        "--data.val_size nan --data.val null",
        r"--data\.val_size: val_size must be int or float, got 'nan'\.",
    ),
    option(
        "--data.seed 99999999999999999999999999999999999999999999",
        "seed must be at most 2,147,483,647, got",
    ),
    option(
        "--data.user_symbols [<s>]", r"user_symbols must not hold '<s>': it names a special piece\."
    ),
    option("--data.user_symbols [a,a]", r"user_symbols holds 'a' more than once\."),
    option(
        "--data.src_lang ../x",
        r"src_lang must be letters, digits, '\.', '_' or '-', 100 at most, got '\.\./x'\.",
    ),
    option(
        "--data.src_lang en/x",
        r"src_lang must be letters, digits, '\.', '_' or '-', 100 at most, got 'en/x'\.",
    ),
    option(
        "--data.src_lang " + "e" * 300,
        r"src_lang must be letters, digits, '\.', '_' or '-', 100 at most, got",
    ),
    option(
        "--data.tokenizer none.model",
        r"no tokenizer at none\.model; give a folder, a SentencePiece \.model or a",
    ),
    option(
        "--trainer.max_epochs 0",
        "nothing was trained: the run is at epoch 0 and step 0, with max_epochs=0,",
        keeps=RUN,
    ),
    option(
        "--trainer.max_steps 0",
        "nothing was trained: the run is at epoch 0 and step 0, with max_epochs=1,",
        keeps=RUN,
    ),
    option(
        "--trainer.limit_train_batches 0",
        "nothing was trained: the run is at epoch 0 and step 0, with max_epochs=1,",
        keeps=RUN,
    ),
    option(
        "--trainer.max_epochs many",
        r"--trainer\.max_epochs: max_epochs must be int or null, got 'many'\.",
    ),
    option(
        "--trainer.gradient_clip_val nan",
        r"--trainer\.gradient_clip_val: gradient_clip_val must be int or float or",
    ),
    option(
        "--trainer.accelerator magic",
        r"You selected an invalid accelerator name: `accelerator='magic'`\. Available",
    ),
    option(
        "--trainer.accelerator cuda",
        "`CUDAAccelerator` can not run on your system since the accelerator is not",
    ),
    option(
        "--trainer.devices 0",
        r"`Trainer\(devices='0'\)` value is not a valid input using cpu accelerator\.",
    ),
    option(
        "--trainer.precision 17",
        r"--trainer\.precision: precision must be one of 64, 32, 16 or one of",
    ),
    option(
        "--trainer.strategy magic",
        r"You selected an invalid strategy name: `strategy='magic'`\. It must be",
    ),
    option("--seed_everything -3", "-3 is not in bounds, numpy accepts from 0 to 4294967295"),
    option(
        "--seed_everything 99999999999999",
        "99999999999999 is not in bounds, numpy accepts from 0 to 4294967295",
    ),
    option(
        "--trainer.callbacks+ litseq.TranslationSamples --trainer.callbacks.num_samples 0",
        r"num_samples must be at least 1, got 0\.",
    ),
    option(
        "--model no.where.Model",
        r"--model: no\.where\.Model is not imported: a configuration may name what is",
    ),
    option(
        "--allow_import no --model no.where.Model",
        r"--model: there is no class 'no\.where\.Model'; a class of your own needs its",
    ),
    option(
        "--allow_import jsonargparse",
        "--allow_import jsonargparse: it decides what may be imported, and stays",
    ),
    option("--allow_import", "--allow_import needs the name of a package, such as mypackage or"),
    option(
        "--trainer.logger.name ../../out",
        r"the name of CSVLogger must be letters, digits, spaces or any of '\.,=\+@-_',",
    ),
    option("--trainer.logger.name a/b", check=trained),
    option("--trainer.logger.name 试验/1", check=trained),
    option(
        "--trainer.logger.name a\\_b\0c",
        r"the name of CSVLogger must be letters, digits, spaces or any of '\.,=\+@-_',",
    ),
    option(
        "--trainer.logger.name " + "a" * 300,
        r"the name of CSVLogger must be letters, digits, spaces or any of '\.,=\+@-_',",
    ),
    option(
        "--trainer.logger.version ../../out",
        "the version of CSVLogger must be letters, digits, spaces or any of",
    ),
    option(
        "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.filename ../../out",
        r"the filename of ModelCheckpoint must stay in its folder, got '\.\./\.\./out';",
    ),
    option(
        "--trainer.callbacks+ ModelCheckpoint --trainer.callbacks.monitor val/ppl", check=trained
    ),
    Case(
        "device",
        "option",
        "a device that is not there",
        "translate --ckpt {ckpt} --device cuda",
        "cannot compute on device 'cuda'; give auto, cpu, or an accelerator that is",
    ),
    Case(
        "device-name",
        "option",
        "a device that is none",
        "translate --ckpt {ckpt} --device magic",
        "cannot compute on device 'magic'; give auto, cpu, or an accelerator that",
    ),
    Case(
        "test-zero",
        "option",
        "a test of no batch",
        "test -c {home}/data.yaml --ckpt_path {ckpt} --trainer.limit_test_batches 0",
        r"nothing was tested: limit_test_batches=0 leaves no batch; leave it out\.",
        keeps=RUN,
    ),
    Case(
        "predict-zero",
        "option",
        "a prediction of no batch",
        "predict -c {home}/data.yaml --ckpt_path {ckpt} --trainer.limit_predict_batches 0",
        "nothing was predicted: limit_predict_batches=0 leaves no batch; leave it",
        keeps=RUN,
    ),
    Case(
        "validate-zero",
        "option",
        "a validation of no batch",
        "validate -c {home}/data.yaml --ckpt_path {ckpt} --trainer.limit_val_batches 0",
        r"nothing was validated: limit_val_batches=0 leaves no batch; leave it out\.",
        keeps=RUN,
    ),
    Case(
        "reached",
        "option",
        "a checkpoint that has reached max_epochs",
        "fit {data} --ckpt_path {ckpt}",
        "nothing was trained: the run is at epoch 1 and step 16, with max_epochs=1,",
        keeps=RUN,
    ),
    Case(
        "beam",
        "option",
        "a beam of no hypothesis",
        "translate --ckpt {ckpt} --beam_size 0",
        r"beam_size must be at least 1, got 0; 1 is greedy search\.",
    ),
    Case(
        "n-best",
        "option",
        "more translations than hypotheses",
        "translate --ckpt {ckpt} --n_best 5 --beam_size 2",
        "n_best must lie between 1 and beam_size, got n_best=5, beam_size=2; raise",
        stdin=b"one\n",
    ),
    Case(
        "temperature",
        "option",
        "a temperature of nan",
        "translate --ckpt {ckpt} --sample true --temperature nan",
        r"--temperature: temperature must be float, got 'nan'\.",
        stdin=b"one\n",
    ),
    Case(
        "max-tokens",
        "option",
        "batches of no token",
        "translate --ckpt {ckpt} --max_tokens 0",
        r"max_tokens must be at least 1, got 0\.",
        stdin=b"one\n",
    ),
    Case(
        "max-src-len",
        "option",
        "sources of no token",
        "translate --ckpt {ckpt} --max_src_len 0",
        r"max_src_len counts EOS and must be at least 2, got 0\.",
        stdin=b"one\n",
    ),
    Case(
        "explain-empty",
        "option",
        "an empty sentence to explain",
        "explain --ckpt {ckpt} \\_ --out x.html",
        r"sentence 1 is blank; there is nothing to explain\.",
    ),
]

"""What the benchmark counts, and how it lets others make their batches."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import litseq
from litseq import heap
from litseq.decoding import SearchOptions, generate_all
from litseq.decoding.turns import Sources
from litseq.layers import linear
from litseq.layers.dropout import Dropout

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402
import benchmark_data  # noqa: E402
import benchmark_peers  # noqa: E402
import benchmark_profile  # noqa: E402
import benchmark_scaling  # noqa: E402
import benchmark_shapes  # noqa: E402
import benchmark_switches  # noqa: E402
import benchmark_without  # noqa: E402
import benchmark_worker as worker  # noqa: E402
from doc_tables import markdown  # noqa: E402

TRANSFORMER = {
    "kind": "transformer", "vocab_size": 60, "d_model": 24, "num_heads": 4, "num_layers": 2,
    "dim_feedforward": 40, "dropout": 0.1, "label_smoothing": 0.1, "longest": 20,
}  # fmt: skip
RNN = TRANSFORMER | {"kind": "rnn", "num_layers": 1}


def batch(sizes):
    torch.manual_seed(0)
    return [torch.randint(4, sizes["vocab_size"], (5, length)) for length in (7, 9)]


def counted(sizes, src, tgt):
    """What torch counts in a training step, and what it passes over."""
    model = worker.Ours(worker.network_of(sizes).train(), 0.1)
    with FlopCounterMode(display=False) as counter:
        model(src, tgt).backward()
    in_place = 2 * tgt.numel() * sizes["d_model"] * sizes["vocab_size"]  # the projection's gradient
    return counter.get_total_flops() + in_place


def test_operations_of_a_transformer_are_those_that_torch_counts():
    src, tgt = batch(TRANSFORMER)
    (b, t), d = tgt.shape, TRANSFORMER["d_model"]
    # torch also counts the products with the future, which are masked
    future = 3 * 2 * TRANSFORMER["num_layers"] * b * (2 * t * t - t * (t + 1)) * d
    found = benchmark.flops_of(src, tgt, TRANSFORMER)
    assert found == counted(TRANSFORMER, src, tgt) - future


def test_operations_leave_padding_out():
    src, tgt = batch(TRANSFORMER)
    longer = [torch.nn.functional.pad(side, (0, 3)) for side in (src, tgt)]
    for sizes in (TRANSFORMER, RNN):
        assert benchmark.flops_of(*longer, sizes) == benchmark.flops_of(src, tgt, sizes)


def test_operations_of_a_recurrent_model_are_about_those_that_torch_counts():
    """Torch knows no GRU, and sees its products."""
    src, tgt = batch(RNN)
    assert benchmark.flops_of(src, tgt, RNN) == pytest.approx(counted(RNN, src, tgt), rel=0.15)


@pytest.mark.parametrize("rule", sorted(set(benchmark.RULES.values())))
def test_batches_of_others_keep_the_budget(rule):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (2000, 2), generator=generator).tolist()
    pairs = [([number % 50 + 4] * s, [5] * t) for number, (s, t) in enumerate(lengths)]
    every = benchmark.own_batches(pairs, rule, 600, 10_000)
    assert sum(len(src) for src, _ in every) == len(pairs)
    sizes = [max(src.size(1), tgt.size(1)) * len(src) for src, tgt in every]
    if rule == "grouped":  # as many sentences in each
        assert max(len(src) for src, _ in every) * 30 < 1200
    else:
        assert max(sizes) <= 600
    padding = 1 - sum(int((tgt != 0).sum()) for _, tgt in every) / sum(t.numel() for _, t in every)
    assert {"shuffled": padding > 0.4, "grouped": padding > 0.3, "sorted": padding < 0.4}[rule]


def test_a_rate_that_is_compared_counts_the_tokens_of_each():
    def rounds(*seconds):
        return {"rounds": [{"seconds": s, "32-true": 100.0} for s in seconds]}

    def contestant(*seconds):
        return rounds(*seconds) | {"facts": {"memory": 2e6, "calls": 7}}

    result = {
        "tokens": {"litseq": 1000, "torch": 500}, "positions": {"litseq": 1250, "torch": 1000},
        "flops": 50e9, "precision": "32-true",
        "contestants": {
            "limit": rounds(1, 1, 1), "litseq": contestant(1, 2, 1), "torch": contestant(2, 2, 3),
        },
    }  # fmt: skip
    header, (bound, litseq, torch_) = benchmark.train_table(result)
    assert dict(zip(header, bound, strict=True))["target tokens a second"] == "2,000"
    assert litseq[1:5] == ["1,000", "1.00 (1.00–1.00)", "50%", "80%"]
    assert torch_[1:5] == ["250", "4.00 (2.00–6.00)", "12%", "50%"]


def test_a_prediction_changes_the_operators_alone():
    def contestant(*pairs, calls=7):
        rounds = [{"seconds": seconds, "operators": operators} for seconds, operators in pairs]
        return {"rounds": rounds, "facts": {"memory": 2e6, "calls": calls}}

    result = {
        "contestants": {
            "limit": {"rounds": []}, "litseq": contestant((4, 3), (4, 2)),
            "freed": contestant((5, 4), (6, 4), calls=9),
        },
    }  # fmt: skip
    header, (nothing, freed) = benchmark_without.table(result)
    assert header[1:3] == ["times as long, predicted", "measured"]
    assert nothing == ["nothing", "1.00 (1.00–1.00)", "1.00 (1.00–1.00)", "7", "2"]
    assert freed == ["freed", "1.38 (1.25–1.50)", "1.38 (1.25–1.50)", "9", "2"]
    for found in result["contestants"].values():  # of a search, before operators were timed
        found["facts"] = {}
        found["rounds"] = [{"seconds": done["seconds"]} for done in found["rounds"]]
    header, (_, freed) = benchmark_without.table(result)
    assert header == ["litseq without", "times as long"]
    assert freed == ["freed", "1.38 (1.25–1.50)"]


FAKE = """
import json, os, sys
from pathlib import Path

_, mode, name, work = sys.argv
if name == "joeynmt" or name == os.environ.get("FAILS"):
    sys.exit(f"nothing here of {name}")
turns = Path(work).with_name("turns")
turns.write_text((turns.read_text() if turns.exists() else "") + name + "\\n")
number = turns.read_text().split().count(name)
facts = {"memory": 100 * number, "calls": number, "settings": os.environ.get("GLIBC_TUNABLES")}
print(json.dumps({"facts": facts, "round": {"seconds": number}}))
"""


def test_each_round_begins_anew_in_an_order_that_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    fake = tmp_path / "worker.py"
    fake.write_text(FAKE)
    args = argparse.Namespace(
        what="train", who=["litseq", "compact", "joeynmt"], python=[], threads=1, rounds=3,
        size="small", max_tokens=1, batches=1, same_batches=False, batch_size=1,
    )  # fmt: skip
    result = benchmark.measure({"tokens": 7}, args, tmp_path, worker=fake)
    assert "left out: joeynmt: nothing here of joeynmt" in capsys.readouterr().err
    turns = (tmp_path / "turns").read_text().split()
    rounds = [tuple(turns[first : first + 3]) for first in (0, 3, 6)]
    assert {frozenset(names) for names in rounds} == {frozenset(("limit", "litseq", "compact"))}
    assert len(set(rounds)) > 1
    assert result["tokens"] == 7
    found = result["contestants"]
    assert list(found) == ["limit", "litseq", "compact"]
    assert found["litseq"]["rounds"] == [{"seconds": 1}, {"seconds": 2}, {"seconds": 3}]
    assert found["litseq"]["facts"] == {"memory": 200, "calls": 1, "settings": None}
    assert found["compact"]["facts"]["settings"] == heap.COMPACT
    monkeypatch.setenv("FAILS", "litseq")  # nothing is compared without it
    with pytest.raises(RuntimeError, match="litseq: nothing here of litseq"):
        benchmark.measure({}, args, tmp_path, worker=fake)


def test_draws_of_dropout_are_among_the_operators(monkeypatch):
    clock = iter(range(0, 10**6))
    monkeypatch.setattr(benchmark_switches.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(Dropout, "draw", lambda self, shape: torch.ones(2) + 1)

    def build(work):
        return lambda *part: {"part": part, "drawn": Dropout(0.5).draw((2,)).tolist()}

    run = benchmark_switches.watched(build)({})
    # one call of the clock before and one after, whatever is called in between
    assert run() == {"part": (), "drawn": [2, 2], "operators": 5}
    assert run(1) == {"part": (1,), "drawn": [2, 2]}


def test_one_machine_does_not_overwrite_another(monkeypatch, tmp_path):
    page, record = tmp_path / "page.md", tmp_path / "record.json"
    monkeypatch.setattr(benchmark, "PAGE", page)
    monkeypatch.setattr(benchmark, "RESULTS", record)
    page.write_text("".join(f"<!-- table:a{name} -->\n<!-- /table -->\n" for name in ("", "-x")))
    benchmark.write("a", [1], ["one"], [["1"]])
    benchmark.write("a", [2], ["two"], [["2"]], machine="x")
    assert json.loads(record.read_text()) == {"a": [1], "a-x": [2]}
    assert page.read_text().index("| one |") < page.read_text().index("| two |")


def test_who_does_not_take_part_is_named():
    benchmark.check_names(["b"], ["a", "b"])
    with pytest.raises(SystemExit, match="'c' is no contestant here; choose among a, b"):
        benchmark.check_names(["a", "c"], ["a", "b"])


@pytest.mark.parametrize(
    ("name", "sizes"), [("torch", TRANSFORMER), ("torch", RNN), ("marian", TRANSFORMER)]
)
def test_peers_learn_and_are_about_as_large(name, sizes):
    line = benchmark_peers.check(benchmark_peers.PEERS[name], benchmark_peers.Sizes(**sizes))
    assert "FAILED" not in line


def test_there_is_no_recurrent_marian():
    with pytest.raises(ValueError, match="use kind 'transformer'"):
        benchmark_peers.PEERS["marian"](benchmark_peers.Sizes(**RNN))


def test_a_checkpoint_of_another_size_is_refused(monkeypatch, tmp_path):
    model = SimpleNamespace(network=SimpleNamespace(d_model=512), tokenizer=object())
    monkeypatch.setattr(litseq.Seq2Seq, "load_from_checkpoint", lambda path: model)
    args = argparse.Namespace(ckpt="a.ckpt", size="small")
    with pytest.raises(SystemExit, match=r"a\.ckpt is 512 wide and size small is 256; give the"):
        benchmark.translate_work(args, tmp_path)


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readme_has_the_numbers_of_the_record(page):
    records = json.loads(benchmark.RESULTS.read_text(encoding="utf-8"))
    _, rows = benchmark.train_table(records["train-small-32-true"])
    rates = {who: rate for who, rate, *_ in rows}
    of_bound = {who: share for who, _, _, share, *_ in rows}["litseq"]
    _, half = benchmark.train_table(records["train-small-bf16-mixed"])
    in_bfloat16 = {who: rate for who, rate, *_ in half}["litseq"]
    _, half = benchmark.train_table(records["train-small-bf16-mixed-xeon"])
    by_matrix_units = {who: rate for who, rate, *_ in half}["compact"]
    _, searches = benchmark.translate_table(records["translate-4"])
    times = {who: float(ratio.split()[0]) for who, _, _, ratio, *_ in searches}
    _, half = benchmark.translate_table(records["translate-bf16-mixed-4"])
    half_times = {who: float(ratio.split()[0]) for who, _, _, ratio, *_ in half}
    text = (ROOT / page).read_text(encoding="utf-8")
    text = text[text.index("scripts/benchmark.py") - 1200 : text.index("scripts/benchmark.py")]
    for number in (
        *(rates[who] for who in ("litseq", "opennmt", "marian", "torch")),
        of_bound.replace("%", ""),
        in_bfloat16,
        by_matrix_units,
        f"{times['marian']:.1f}",
        f"{half_times['marian']:.1f}",
        f"{times['ctranslate2']:.1f}",
        f"{1 / times['litseq-int8']:.1f}",
    ):
        assert number in text, number


TABLES = {
    "without-train": benchmark_without.table,
    "without-translate": benchmark_without.table,
    "data": benchmark_data.table,
    "lengths": benchmark_scaling.lengths_table,
    "processes": benchmark_scaling.processes_table,
    "shapes": benchmark_shapes.table,
}


def test_the_page_has_the_tables_of_the_record():
    page = benchmark.PAGE.read_text(encoding="utf-8")
    for key, result in json.loads(benchmark.RESULTS.read_text(encoding="utf-8")).items():
        if (name := key.removesuffix("-xeon")) in TABLES:
            header, rows = TABLES[name](result)
        elif key.startswith("train"):
            header, rows = benchmark.train_table(result)
        else:
            header, rows = benchmark.translate_table(result)
        assert markdown(header, rows) in page, key


def test_a_profile_names_the_largest_costs():
    x = torch.randn(512, 512)
    header, rows = benchmark_profile.largest(lambda: (x @ x).relu())
    assert header == ["operator", "calls", "ms", "share"]
    assert rows[0][:2] == ["`aten::mm`", "1"]
    assert [row[0] for row in rows].count("`aten::relu`") == 1
    assert rows[-1][0] == "the rest"
    assert sum(float(row[3].rstrip("%")) for row in rows) == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("num_sentences", "most"), [(256, 1000), (249, 1055)])
def test_a_training_step_has_few_operator_calls(num_sentences, most, monkeypatch):
    """More where there are more rows than positions; each is some microseconds of Python."""
    monkeypatch.setattr(heap, "keep_freed", lambda: None)
    torch.manual_seed(0)
    src, tgt = torch.randint(4, 8000, (2, num_sentences, 16))
    src[::2, 13:] = 0
    tgt[::3, 14:] = 0
    sizes = benchmark.sizes_of("small", longest=16)
    run = worker.litseq({"sizes": sizes, "batches": [(src, tgt)], "precision": "32-true"})
    run()
    with worker.Watch() as watch:
        run()
    assert watch.calls <= most + (0 if linear._has_kernels(torch.float32) else 150)


@pytest.mark.parametrize("name", benchmark_switches.SWITCHES["train"])
def test_what_is_switched_off_in_training_is_not_done(name, monkeypatch):
    torch.manual_seed(0)
    src, tgt = torch.randint(4, 60, (2, 32, 8))  # as many rows as oneDNN is asked for
    model = worker.Ours(worker.network_of(TRANSFORMER).train(), 0.1)

    def calls():
        model.zero_grad()
        with worker.Watch() as watch:
            model(src, tgt).backward()
        return watch.calls

    before = calls()
    for switch in benchmark_switches.SWITCHES["train"][name]:
        monkeypatch.setattr(*switch)
    same = name.startswith("freed") or (name.startswith("oneDNN") and not linear._has_onednn())
    assert (calls() == before) == same


@pytest.mark.parametrize("name", benchmark_switches.SWITCHES["translate"])
def test_what_is_switched_off_in_a_search_changes_no_translation(name, monkeypatch):
    torch.manual_seed(0)
    model = worker.network_of(TRANSFORMER).eval()
    src = torch.randint(4, 60, (40, 8))
    options = SearchOptions(beam_size=4, max_len_b=3, patience=1)

    def translations():
        def source(part):
            memory = model.encode(part, part == 0)
            return Sources.of(memory, torch.full((len(part),), 11))

        return generate_all(model, map(source, src.split(20)), options=options, bos_id=2, eos_id=3)

    with torch.no_grad():
        expected = [[found.tokens for found in row] for row in translations()]
        for switch in benchmark_switches.SWITCHES["translate"][name]:
            monkeypatch.setattr(*switch)
        assert [[found.tokens for found in row] for row in translations()] == expected
    assert len(expected) == len(src)


def test_corpora_of_any_size_have_no_pair_twice(tmp_path):
    for lang in benchmark_data.LANGUAGES:
        (tmp_path / f"train.{lang}").write_text(f"{lang} a\n{lang} b\n")
    src, tgt = benchmark_data.write_corpus(f"{tmp_path}/train", 5, tmp_path / "more")
    assert src == ["0 en a", "0 en b", "1 en a", "1 en b", "2 en a"]
    assert (tmp_path / "more.de").read_text().splitlines() == tgt
    assert len(set(src)) == len(set(tgt)) == 5

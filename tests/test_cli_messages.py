import pytest

from litseq.cli_messages import check_configs, explain, options


def test_options():
    words = ["fit", "-c", "a.yaml", "--lr=1", "word", "--flag", "--name", "--other=x=y"]
    assert list(options(words)) == [
        ("-c", "a.yaml"),
        ("--lr", "1"),
        ("--flag", "--name"),  # whether it takes a value is the parser's affair
        ("--name", "--other=x=y"),
        ("--other", "x=y"),
    ]
    assert list(options(["fit", "--last"])) == [("--last", "")]


# ---- configuration files ----


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a: [1\n",
            r"a\.yaml, line 2: not YAML \(expected ',' or '\]', .*\); brackets and quotes",
        ),
        (b"a:\n\tb: 1\n", r"a\.yaml, line 2: not YAML \(found character '\\t' that cannot start"),
        (b"a: 'b\nc: 2\n", r"a\.yaml, line 3: not YAML \(found unexpected end of stream\)"),
        (b"a: 1\nb: caf\xe9\n", r"a\.yaml, line 2: byte 0xe9 is not UTF-8; convert the file"),
        (b"a: \x07\n", r"a\.yaml: not YAML"),
        (b"", r"a\.yaml holds nothing; it needs keys such as model, data or trainer"),
        (b"# only a remark\n", r"a\.yaml holds nothing"),
        (b"- a\n- b\n", r"a\.yaml holds a list; it needs keys"),
        (b"fit\n", r"a\.yaml holds a str; it needs keys"),
    ],
)
def test_faulty_files(content, message, elsewhere):
    (elsewhere / "good.yaml").write_text("model: {}\n")
    (elsewhere / "a.yaml").write_bytes(content)
    for words in (["-c", "a.yaml"], ["--config", "a.yaml"], ["--config=a.yaml"]):
        with pytest.raises(ValueError, match=message):
            check_configs(["fit", "-c", "good.yaml", *words])


def test_missing_files(elsewhere):
    with pytest.raises(FileNotFoundError, match=r"at a\.yaml; beside it: no YAML file\."):
        check_configs(["fit", "-c", "a.yaml"])
    (elsewhere / "b.yaml").write_text("model: {}\n")
    (elsewhere / "c.yml").write_text("model: {}\n")
    with pytest.raises(FileNotFoundError, match=r"at a\.yaml; beside it: b\.yaml, c\.yml\."):
        check_configs(["fit", "-c", "b.yaml", "-c", "a.yaml"])
    with pytest.raises(ValueError, match=r"is a folder; give a configuration file\."):
        check_configs(["fit", "-c", str(elsewhere)])


def test_what_is_no_file_is_left_to_the_parser():
    check_configs(["fit", "-c", "{model: TransformerSeq2Seq}", "-c", "https://host/a.yaml", "-c"])


# ---- messages ----


def test_an_unknown_message_becomes_one_line():
    assert explain("something\n  else\n\n is wrong", ["fit"]) == "something else is wrong"


WRONG_TYPE = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'litseq.task.Seq2Seq'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'litseq.TransformerSeq2Seq':
        Parser key "lr":
          Expected a <class 'float'>. Got value: high
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'class_path': 'TransformerSeq2Seq', 'init_args': {'lr': 'high'}}"""


def test_the_place_is_where_key_and_value_meet(elsewhere):
    (elsewhere / "a.yaml").write_text("model:\n  lr: 1\n")
    (elsewhere / "b.yaml").write_text("# lr: high\nmodel:\n\n  lr: high # of course\n")
    words = ["fit", "-c", "a.yaml", "--config=b.yaml"]
    assert explain(WRONG_TYPE, words) == "b.yaml, line 4: lr must be float, got 'high'."
    words = ["fit", "-c", "a.yaml", "--model.lr", "high"]
    assert explain(WRONG_TYPE, words) == "--model.lr: lr must be float, got 'high'."
    # written otherwise than the parser shows it, the key alone must do
    assert explain(WRONG_TYPE, ["fit", "-c", "a.yaml"]) == (
        "a.yaml, line 2: lr must be float, got 'high'."
    )
    assert explain(WRONG_TYPE, ["fit"]) == "lr must be float, got 'high'."


def test_a_key_is_not_found_within_another(elsewhere):
    (elsewhere / "a.yaml").write_text("lr_scheduler: high\nother.lr: high\nmy_lr: high\nlr: high\n")
    assert explain(WRONG_TYPE, ["fit", "-c", "a.yaml"]).startswith("a.yaml, line 4: ")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Subcommand 'fit' does not accept option 'trainer.init_args.max_epoch'", "unknown key "
         "'max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("Group 'x' does not accept option 'zzz'", "unknown key 'zzz'; 'litseq fit --help' lists "
         "the keys."),
        ("unrecognized arguments: --data.batch_size=3", "unknown key 'batch_size'; 'litseq fit "
         "--help' lists the keys."),
        ("argument -c/--config: expected one argument", "--config needs a value; 'litseq fit "
         "--help' says which."),
    ],
)  # fmt: skip
def test_unknown_keys(message, expected):
    assert explain(message, ["fit"]) == expected


def test_keys_of_other_classes_are_listed():
    message = (
        "Problem with given class_path 'litseq.TranslationSamples':\n  Option 'zzz' is not accepted"
    )
    assert explain(message, ["fit"]) == (
        "unknown key 'zzz' of TranslationSamples; it has max_rows, num_samples, texts."
    )

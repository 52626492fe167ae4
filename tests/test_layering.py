"""Imports point downward only."""

import ast
import subprocess
import sys
from pathlib import Path

import litseq

ROOT = Path(litseq.__file__).parent
# From the bottom to the top; a part may import itself and what stands on lines before its own.
LAYERS = [
    ["types", "textfiles", "random_state", "sharding", "heap", "precision"],
    ["layers"],
    ["models"],
    ["attention"],
    ["decoding", "data", "losses", "schedules", "evaluation"],
    ["projected_loss", "optimizers"],
    ["checkpoint_io", "fonts", "pretrained"],
    ["shards"],
    ["checkpoints"],
    ["translator", "hub"],
    ["task", "heatmaps", "engines"],
    ["architectures"],
    ["callbacks", "translate", "average"],
    ["explain", "export"],
    ["selftest"],
    ["cli_imports"],
    ["cli_messages", "cli_outputs", "cli_resume", "cli_runs"],
    ["cli"],
    ["completion"],
    ["__main__", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
TORCH_ALONE = {"types", "layers", "models", "decoding", "attention"}
HEAVY = {"lightning", "datasets", "sentencepiece", "wandb", "torchmetrics", "sacrebleu", "rich"}


def imports():
    """Yields (part, imported module) for every import statement of the package."""
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((part, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                module = node.module or ""
                yield part, module
                if module == "litseq":
                    yield from ((part, f"litseq.{alias.name}") for alias in node.names)


def test_every_part_has_its_place():
    assert {part for part, _ in imports()} == set(LEVEL)


def test_imports_point_downward():
    wrong = []
    for part, module in imports():
        if not module.startswith("litseq."):
            continue
        target = module.split(".")[1]
        if target not in LEVEL:  # a name of the package itself
            continue
        if target != part and LEVEL[target] >= LEVEL[part]:
            wrong.append(f"{part} imports {module}")
    assert not wrong


def test_the_lower_half_imports_torch_alone():
    wrong = [
        f"{part} imports {module}"
        for part, module in imports()
        if part in TORCH_ALONE and module.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_callbacks_know_no_model_and_data_no_task():
    for part, module in imports():
        if part in ("callbacks", "data", "evaluation", "losses", "schedules", "optimizers"):
            assert not module.startswith("litseq.models"), f"{part} imports {module}"


def test_importing_the_package_does_nothing():
    code = (
        "import sys, socket, subprocess\n"
        "def refuse(*_, **__): raise SystemExit('import litseq opened a socket or a process')\n"
        "socket.socket.connect = refuse; subprocess.Popen.__init__ = refuse\n"
        "import litseq\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'lightning', 'datasets', 'wandb'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in litseq.__all__:
        assert getattr(litseq, name).__doc__, name
    assert set(litseq.__all__) == set(litseq._HOME)

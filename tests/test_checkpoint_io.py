import itertools
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.io import AsyncCheckpointIO

import saving_process
from litseq.checkpoint_io import (
    DamagedCheckpointError,
    SafeCheckpointIO,
    find_damage,
    is_intact,
    load_file,
)


@pytest.fixture
def plugin():
    return SafeCheckpointIO()


def checkpoint(step=3):
    shared = torch.arange(6.0).reshape(2, 3)
    return {
        "global_step": step,
        "state_dict": {
            "a": torch.randn(5, 7, generator=torch.Generator().manual_seed(step)),
            "half": torch.ones(3).bfloat16(),
            "count": torch.tensor(step),
            "one": shared,
            "tied": shared,
            "empty": torch.zeros(0, 4),
        },
        "hyper_parameters": {"d_model": 5, "betas": (0.9, 0.98), "name": "träge", "none": None},
    }


def same(one, other):
    """Whether two checkpoints are the same to the last bit."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(plugin, tmp_path):
    path = tmp_path / "new" / "folder" / "a.ckpt"
    plugin.save_checkpoint(checkpoint(), path)
    for form in (path, str(path), f"file://{path}"):
        found = plugin.load_checkpoint(form)
        assert same(found, checkpoint())
        assert found["state_dict"]["one"].data_ptr() == found["state_dict"]["tied"].data_ptr()
    plugin.save_checkpoint(checkpoint(4), str(path))
    assert same(plugin.load_checkpoint(path, map_location="cpu", weights_only=True), checkpoint(4))
    assert names(path.parent) == ["a.ckpt"]


def test_lightning_and_torch_read_it(plugin, tmp_path):
    plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert same(torch.load(tmp_path / "a.ckpt", weights_only=True), checkpoint())
    torch.save(checkpoint(), tmp_path / "b.ckpt")
    assert same(plugin.load_checkpoint(tmp_path / "b.ckpt"), checkpoint())


def test_the_system_s_temporary_folder_is_not_used(plugin, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # where nobody can write
    plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert same(plugin.load_checkpoint(tmp_path / "a.ckpt"), checkpoint())


def test_checksums_are_written_whatever_the_process_prefers(plugin, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(checkpoint(), tmp_path / "without.ckpt")
        plugin.save_checkpoint(checkpoint(), tmp_path / "with.ckpt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_damage(tmp_path / "with.ckpt") is None
    assert find_damage(tmp_path / "without.ckpt") == "is damaged"


def test_a_link_is_replaced_not_what_it_points_to(plugin, tmp_path):
    plugin.save_checkpoint(checkpoint(1), tmp_path / "step=1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    plugin.save_checkpoint(checkpoint(2), tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert same(plugin.load_checkpoint(tmp_path / "step=1.ckpt"), checkpoint(1))


# ---- damage ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint(), path)
    return path.read_bytes()


def outcome(path):
    """What reading a file comes to: equal, or refused as damaged; else the test fails."""
    try:
        found = load_file(path)
    except DamagedCheckpointError as error:
        return str(error)
    assert same(found, checkpoint())
    return "equal"


@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_a_flipped_bit_changes_nothing_or_is_found(flip, whole, tmp_path):
    outcomes = []
    for position in range(flip % 7, len(whole), 13):
        damaged = bytearray(whole)
        damaged[position] ^= flip
        (tmp_path / "a.ckpt").write_bytes(damaged)
        outcomes.append(outcome(tmp_path / "a.ckpt"))
    # what is equal: padding between records, and what zip says that torch does not read
    assert len(outcomes) / 4 < len(outcomes) - outcomes.count("equal")
    for message in set(outcomes) - {"equal"}:
        assert re.search(
            r"a\.ckpt (is damaged|\(.* bytes\) is not a checkpoint, or was cut short); us"
            r"e another checkpoint of the run\.$",
            message,
        )


@pytest.mark.slow
@pytest.mark.parametrize("flip", [1 << bit for bit in range(8)] + [0xFF])
def test_every_flipped_bit_changes_nothing_or_is_found(flip, whole, tmp_path):
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= flip
        (tmp_path / "a.ckpt").write_bytes(damaged)
        outcome(tmp_path / "a.ckpt")


def test_an_index_on_another_disk_is_damage(whole, tmp_path):
    """Of all damage the only one of which Python's own question for an archive is an error."""
    damaged = bytearray(whole)
    damaged[whole.rindex(b"PK\x06\x07") + 16] ^= 2  # number of disks
    (tmp_path / "a.ckpt").write_bytes(damaged)
    with pytest.raises(DamagedCheckpointError, match=r"\([\d,]+ bytes\) is not a checkpoint, or"):
        load_file(tmp_path / "a.ckpt")


def test_every_flipped_bit_of_a_tensor_is_found(whole, tmp_path):
    start = whole.index(checkpoint()["state_dict"]["a"].numpy().tobytes())
    for position, bit in itertools.product(range(start, start + 5 * 7 * 4, 3), range(8)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        (tmp_path / "a.ckpt").write_bytes(damaged)
        assert find_damage(tmp_path / "a.ckpt") == "is damaged"


def test_every_truncation_at_the_border_of_a_record_is_found(whole, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        borders = [record.header_offset for record in archive.infolist()] + [archive.start_dir]
    assert len(borders) > 8
    for size in {max(0, border + by) for border in borders for by in (-1, 0, 1)}:
        path.write_bytes(whole[:size])
        with pytest.raises(DamagedCheckpointError, match=r"a\.ckpt \([\d,]+ bytes\) is not a"):
            load_file(path)


def test_other_files(tmp_path):
    path = tmp_path / "a.ckpt"
    for content in (b"", b"one red house\n", pickle.dumps({"state_dict": {}}), os.urandom(5000)):
        path.write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=rf"\({len(content):,} bytes\) is not a"):
            load_file(path)
    with path.open("wb") as file:  # room that was promised, and never filled
        file.truncate(50_000_000)
    with pytest.raises(DamagedCheckpointError, match=r"\(50,000,000 bytes\) is not a checkpoint"):
        load_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/a.txt", "one red house")
    with pytest.raises(DamagedCheckpointError, match=r"a\.ckpt is damaged; use another checkpoin"):
        load_file(path)


def test_what_is_compressed_is_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10_000_000))
    assert find_damage(tmp_path / "bomb.ckpt") == "is damaged"
    with (tmp_path / "bomb.ckpt").open("rb") as file:
        assert not is_intact(file)


# ---- loading ----


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("the-code-ran",)


def test_load_runs_no_code(plugin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"more": Code()}, "code.ckpt")
    with pytest.raises(ValueError, match=r"code\.ckpt holds \w+\.mkdir, which is neither a tensor"):
        plugin.load_checkpoint("code.ckpt")
    with pytest.raises(ValueError, match=r"code\.ckpt: weights_only=False would run any code"):
        plugin.load_checkpoint("code.ckpt", weights_only=False)
    assert names(tmp_path) == ["code.ckpt"]


@pytest.mark.parametrize("scheme", ["http", "https", "ftp"])
def test_load_fetches_nothing(scheme, plugin):
    with pytest.raises(ValueError, match=r"is a URL; download the file, check it, and give its pa"):
        plugin.load_checkpoint(f"{scheme}://127.0.0.1:9/a.ckpt")


def test_load_of_nothing(plugin, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at .*a\.ckpt\."):
        plugin.load_checkpoint(tmp_path / "a.ckpt")


def test_other_file_systems_go_lightning_s_way(plugin):
    path = "memory://folder/a.ckpt"
    plugin.save_checkpoint(checkpoint(), path)
    assert same(plugin.load_checkpoint(path), checkpoint())
    plugin.save_checkpoint({"more": Code()}, path)
    with pytest.raises(pickle.UnpicklingError):
        plugin.load_checkpoint(path)
    plugin.remove_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        plugin.load_checkpoint(path)


def test_storage_options(plugin, tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt", storage_options={"a": 1})


# ---- removing ----


def test_remove(plugin, tmp_path):
    file, link, folder = (tmp_path / name for name in ("a.ckpt", "link.ckpt", "shards.ckpt"))
    plugin.save_checkpoint(checkpoint(), file)
    link.symlink_to("shards.ckpt")
    (folder / "part").mkdir(parents=True)
    plugin.remove_checkpoint(link)
    assert names(tmp_path) == ["a.ckpt", "shards.ckpt"]
    for path in (file, str(folder)):
        plugin.remove_checkpoint(path)
        plugin.remove_checkpoint(path)  # already gone
    assert names(tmp_path) == []


def test_what_cannot_be_removed_stays(plugin, tmp_path, monkeypatch, caplog):
    plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")

    def busy(self):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "unlink", busy)
    plugin.remove_checkpoint(tmp_path / "a.ckpt")
    assert caplog.messages == [
        f"{tmp_path / 'a.ckpt'} could not be removed (Device or resource busy) and stays."
    ]


# ---- saving that fails ----


def run_process(*commands):
    # not below pytest's own folder, which no other user may enter
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        command = [sys.executable, saving_process.__file__, folder, *commands]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in out.stdout.splitlines()]


@pytest.fixture(scope="module")
def processes():
    """What became of processes; torch takes seconds to import, so one makes them all."""
    return run_process("points", "failures", "memory", "random:5:1")


def test_no_second_copy_in_memory(processes):
    [found] = [case["mebibytes"] for case in processes if "mebibytes" in case]
    assert found < 16  # of 128 that were saved


def test_failures(processes):
    found = {case["case"]: case for case in processes if "case" in case}
    assert set(found) == {
        "full_disk",
        "read_only",
        "removed",
        "folder_of_that_name",
        "not_a_folder",
    }
    for case in found.values():
        assert case["message"].startswith(f"could not save {case['path']}: {case['reason']}")
        assert "\n" not in case["message"]
        assert case["left"] == []
    for name in ("full_disk", "read_only"):
        assert found[name]["former"] == 1
        assert "; the former last.ckpt is intact. Make " in found[name]["message"]
    assert " MiB are free in " in found["full_disk"]["message"]
    assert "was removed; keep other processes out" in found["removed"]["message"]
    assert "Move the folder of that name away" in found["folder_of_that_name"]["message"]
    assert "A part of the path is a file, not a" in found["not_a_folder"]["message"]


def test_an_error_says_what_the_system_said(plugin, tmp_path):
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(OSError, match="Is a directory") as failed:
        plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert failed.value.errno == 21
    with pytest.raises(OSError, match=r"File name too long; .* free in .*\. Save to another fold"):
        plugin.save_checkpoint(checkpoint(), tmp_path / ("a" * 255))
    assert names(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("handled", [None, KeyboardInterrupt(), OSError("earlier")])
def test_what_cannot_be_pickled_leaves_the_former_file(handled, plugin, tmp_path):
    plugin.save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")

    def save():
        if handled is None:
            plugin.save_checkpoint({"function": lambda: 0}, tmp_path / "a.ckpt")
        try:  # as Lightning saves after something else has failed
            raise handled
        except (KeyboardInterrupt, OSError):
            plugin.save_checkpoint({"function": lambda: 0}, tmp_path / "a.ckpt")

    with pytest.raises((pickle.PicklingError, AttributeError), match="pickle"):
        save()
    assert names(tmp_path) == ["a.ckpt"]
    assert same(plugin.load_checkpoint(tmp_path / "a.ckpt"), checkpoint(1))


@pytest.mark.parametrize("write", [1, 2, 5, 12])
def test_ctrl_c_while_writing_stays_one(write, plugin, tmp_path, monkeypatch):
    plugin.save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")
    real_open = Path.open

    class Interrupted:
        """A file at whose n-th part the user presses Ctrl-C."""

        def __init__(self, file):
            self.file, self.count = file, 0

        def write(self, data):
            self.count += 1
            if self.count == write:
                signal.raise_signal(signal.SIGINT)
            return self.file.write(data)

        def flush(self):
            self.file.flush()

        def fileno(self):
            return self.file.fileno()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(real_open(path, mode)))
    with pytest.raises(KeyboardInterrupt):
        plugin.save_checkpoint(checkpoint(2), tmp_path / "a.ckpt")
    monkeypatch.undo()
    assert names(tmp_path) == ["a.ckpt"]
    assert same(plugin.load_checkpoint(tmp_path / "a.ckpt"), checkpoint(1))


def test_objects_that_could_not_be_loaded_are_named(plugin, tmp_path, caplog):
    path = tmp_path / "a.ckpt"
    plugin.save_checkpoint({"folder": Path("x"), "count": 3}, path)
    [message] = caplog.messages
    assert message.startswith(f"{path} holds pathlib.P")
    assert "will be refused when it is loaded; keep to tensors and plain" in message
    with pytest.raises(ValueError, match=r"a\.ckpt holds pathlib\.P.*, which is neither"):
        plugin.load_checkpoint(path)
    caplog.clear()
    plugin.save_checkpoint(checkpoint(), path)
    assert not caplog.messages


# ---- processes that are killed ----


def test_killed_at_every_point(processes):
    *deaths, end = [case for case in processes if "point" in case]
    assert [death["point"] for death in deaths] == list(saving_process.POINTS)
    for death in deaths:
        assert death["signal"] in (signal.SIGKILL, signal.SIGXFSZ)
        replaced = death["point"] == "after the replacement"
        assert death["found"] == death["former"] + replaced
        # what the ones before left is gone; this one's own is there if it had begun
        begun = not replaced and death["point"] != "before the temporary file"
        assert len(death["left"]) == begun
        assert all(name.startswith(".last.ckpt.") for name in death["left"])
    assert end == {"point": "afterwards", "found": 99, "left": ["last.ckpt"]}


def check_random(deaths):
    for death in deaths:
        # at most the one save whose completion it could not say any more
        assert death["found"] - death["completed"] in (0, 1)
        assert len(death["left"]) <= 1


def test_killed_at_random(processes):
    deaths = [case for case in processes if "completed" in case]
    assert len(deaths) == 5
    check_random(deaths)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_often(seed):
    deaths = run_process(f"random:60:{seed}")
    assert len(deaths) == 60
    check_random(deaths)
    assert {death["found"] - death["completed"] for death in deaths} == {0, 1}


# ---- with Lightning ----


def fit(folder, plugins, *, epochs=2, ckpt_path=None, model=None):
    pl.seed_everything(1)
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_train_batches=3, limit_val_batches=0,
        plugins=plugins, callbacks=[saving], logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    model = model or BoringModel()
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer, model


def test_any_module_is_saved_and_resumed(tmp_path):
    _, straight = fit(tmp_path / "a", [SafeCheckpointIO()], epochs=3)
    fit(tmp_path / "b", [SafeCheckpointIO()], epochs=2)
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    assert find_damage(last) is None
    trainer, resumed = fit(tmp_path / "b", [SafeCheckpointIO()], epochs=3, ckpt_path=last)
    assert trainer.global_step == 9
    assert same(dict(straight.state_dict()), dict(resumed.state_dict()))
    assert names(last.parent) == ["epoch=2-step=9.ckpt", "last.ckpt"]


def test_inside_of_lightning_s_asynchronous_plugin(tmp_path):
    _, model = fit(tmp_path, [AsyncCheckpointIO(SafeCheckpointIO())])
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert same(load_file(last)["state_dict"], dict(model.state_dict()))
    assert find_damage(last) is None
    assert [name for name in names(last.parent) if name.startswith(".")] == []
    last.unlink()
    last.mkdir()
    plugin = AsyncCheckpointIO(SafeCheckpointIO())

    def save():
        plugin.save_checkpoint(checkpoint(), last)  # raises already, if the thread is quicker
        plugin.teardown()

    with pytest.raises(OSError, match=r"could not save .*last\.ckpt: Is a directory"):
        save()


def test_a_failed_save_ends_the_run_loudly(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder would be")
    with pytest.raises(OSError, match=r"could not save .*\.ckpt: File exists"):
        fit(tmp_path, [SafeCheckpointIO()])


def test_saving_draws_no_random_number(plugin, tmp_path):
    import random

    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_it_says_nothing_when_all_is_well(plugin, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        plugin.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
        plugin.load_checkpoint(tmp_path / "a.ckpt")
        plugin.remove_checkpoint(tmp_path / "a.ckpt")
    assert not caplog.messages

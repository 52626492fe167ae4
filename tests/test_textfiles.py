import codecs
import io
import os
import threading

import pytest

from litseq.textfiles import read_lines, whole_file


def write(path, text):
    with whole_file(path) as file:
        file.write(text)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "one")
    assert path.read_text() == "one"
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(str(1 / 0))
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_to(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write(pipe, "through")
    reader.join()
    assert found == ["through"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_that_is_not_utf8_is_named(mark):
    with pytest.raises(ValueError, match=r"a\.txt, line 1: byte 0xe9 at position 3 is not UTF-8"):
        list(read_lines(io.BytesIO(mark + b"ab\xe9\n"), "a.txt"))

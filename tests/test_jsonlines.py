"""Lists of records are copied line by line, whatever they look like, and nothing is lost."""

import json
import os
from pathlib import Path

import pytest

from clbench import jsonlines
from clbench.dataset import DataSet
from clbench.errors import UserError
from clbench.hub import Hub
from clbench.jsonlines import as_lines

RECORDS = [
    {"q": f"a ] and a }} [{n}] and \u2028 a \x85 line\n", "a": n, "more": {"deep": [n, None]}}
    for n in range(7)
]
SPELLINGS = {
    "one line": json.dumps(RECORDS),
    "one a line": "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS) + "\n]\n",
    "indented": "\n " + json.dumps(RECORDS, indent=4, ensure_ascii=False),
    "of Windows": "\ufeff" + json.dumps(RECORDS, indent=1).replace("\n", "\r\n"),
}


@pytest.mark.parametrize("piece", [9, 64, 2**22])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_record_becomes_a_line(
    tmp_path: Path, monkeypatch, spelling: str, piece: int
) -> None:
    path, folder = tmp_path / "list.json", tmp_path / "lines"
    path.write_bytes(SPELLINGS[spelling].encode())
    monkeypatch.setattr(jsonlines, "PIECE", piece)
    copy = as_lines(path, folder)
    lines = copy.read_bytes().decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == RECORDS
    assert list(folder.iterdir()) == [copy]


def test_a_copy_is_made_again_only_for_another_file(tmp_path: Path) -> None:
    path, folder = tmp_path / "list.json", tmp_path / "lines"
    path.write_text('[{"a": 1}]')
    first = as_lines(path, folder)
    first.write_text("kept\n")
    assert as_lines(path, folder).read_text() == "kept\n"
    os.utime(path, (1, 1))
    assert as_lines(path, folder).read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '["a", "b"]', "[]\n", '{"a": [{}]}'])
def test_what_is_no_list_of_records_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert as_lines(path, tmp_path / "lines") == path
    assert not (tmp_path / "lines").exists()


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": 2}', '[{"a": 1} {"a": 2}]', '[{"a": 1}, ]', '[{"a": 1}] {', '[{"a": 1}, 2]'],
)
def test_a_damaged_list_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch, text: str
) -> None:
    (tmp_path / "damaged.json").write_text(text)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError, match=r"^data set damaged\.json cannot be read: [^\n]+$"):
        Hub().table(DataSet("damaged.json", place="file", base=str(tmp_path)))
    assert not any((tmp_path / "cache" / "json-lines").iterdir())

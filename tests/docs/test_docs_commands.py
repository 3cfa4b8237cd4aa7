from __future__ import annotations

import pytest

from tests.docs.pages import ROOT, parse
from tests.docs_commands import run_page

PAGE = """
```python
# said.py
print("from a file")
```

```sh
python said.py > out.txt
flash-deploy --version >> out.txt
```

<!-- needs: a GPU -->
```sh
exit 3
```

```python
assert open("out.txt").read() == "from a file\\nflash-deploy 0.2.0\\n"
```

```text
exit 4
```
"""


def test_blocks_run_in_order_in_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_page(parse(ROOT / "x.md", PAGE)) == (3, 1)
    assert "x.md:7\n" in capsys.readouterr().out


def test_first_failure_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = parse(ROOT / "x.md", "```sh\necho before\nfalse | true\n```\n\n```sh\necho after\n```\n")
    with pytest.raises(SystemExit, match=r"x\.md:1: exit code 1"):
        run_page(page)
    said = capsys.readouterr().out
    assert "    before\n" in said
    assert "after" not in said

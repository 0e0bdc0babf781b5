"""What the dashboard answers, and what it refuses."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

import moopt
from moopt.cli import app
from moopt.dashboard.library import key
from moopt.study import load_history
from tests.dashboard.conftest import HOSTILE


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def told(url: str) -> Any:
    status, _, body = get(url)
    assert status == 200, body
    return json.loads(body)


def at(address: str, storage: str, name: str, what: str) -> str:
    return f"{address}/api/{key(storage)}/{what}?{urlencode({'study': name})}"


def test_studies_are_listed_with_their_fronts(address: str, storage: str) -> None:
    found = told(f"{address}/api/studies")["studies"]
    assert {each.get("name") for each in found} == {"plain", HOSTILE, "hard", None}
    plain = next(each for each in found if each.get("name") == "plain")
    history = load_history(storage, "plain")
    assert plain["front"] == len(history.front())
    loss, cost = (o.name for o in history.objectives)
    assert plain["outline"] == [[t.values[cost], t.values[loss]] for t in history.front()]
    assert "There is no storage" in next(each for each in found if "error" in each)["error"]


@pytest.mark.parametrize("name", ["plain", "hard", HOSTILE])
def test_the_best_points_shown_are_the_front(address: str, storage: str, name: str) -> None:
    history = load_history(storage, name)
    card = told(at(address, storage, name, "cards/front"))["whole"]
    table = card["table"]
    role, number = table["columns"].index("role"), table["columns"].index("trial")
    shown = {row[number] for row in table["rows"] if row[role] == "front"}
    assert shown == {trial.number for trial in history.front()}
    drawn = next(trace for trace in card["figure"]["data"] if trace.get("name") == "front")
    assert set(drawn["customdata"]) == shown


def test_every_card_is_told(address: str, storage: str) -> None:
    for name in ("plain", "hard", HOSTILE):
        page = told(at(address, storage, name, "page"))["whole"]
        assert page["name"] == name
        for each in page["cards"]:
            card = told(at(address, storage, name, f"cards/{each}"))["whole"]
            assert card == {} or card["title"]


def test_a_candidate_is_told_whole(address: str, storage: str) -> None:
    history = load_history(storage, "hard")
    failed = next(t for t in history.trials if t.state == "failed")
    found = told(at(address, storage, "hard", f"trials/{failed.number}"))
    assert failed.failure is not None
    assert found["failure"] == failed.failure.message
    good = history.front()[0]
    found = told(at(address, storage, "hard", f"trials/{good.number}"))
    assert found["on_front"]
    assert {each["name"]: each["search"] for each in found["figures"]} == {
        o.name: good.values[o.name] for o in history.objectives
    }
    assert {each["label"]: each["value"] for each in found["decisions"]} == good.config
    assert found["constraints"][0]["holds"]
    assert f"--trial {good.number}" in found["commands"]["shell"]
    assert get(at(address, storage, "hard", "trials/9999"))[0] == 404


def test_nothing_is_sent_twice(address: str, storage: str) -> None:
    for what in ("page", "cards/front"):
        url = at(address, storage, "plain", what)
        tag = told(url)["tag"]
        assert told(f"{url}&tag={tag}") == {"tag": tag}


def test_other_names_and_other_sites_are_refused(address: str) -> None:
    assert get(f"{address}/", host="evil.example")[0] == 403
    assert get(f"{address}/", host="127.0.0.1.evil.example")[0] == 403
    assert get(f"{address}/api/studies", method="POST", origin="http://evil.example")[0] == 403
    assert get(f"{address}/api/studies", method="POST")[0] == 403
    assert get(f"{address}/", host="localhost:1")[0] == 200


def test_paths_lead_nowhere_else(address: str, storage: str) -> None:
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/api/../../etc/passwd/page"):
        assert get(f"{address}{path}")[0] in (404, 403)
    assert get(at(address, storage, "../plain", "page"))[0] == 404
    assert get(f"{address}/api/nowhere/page?study=plain")[0] == 404
    assert get(f"{address}/api/{key(storage)}/page")[0] == 404
    assert get(at(address, storage, "plain", "cards/none"))[0] == 404


def test_headers_let_nothing_in_from_elsewhere(address: str) -> None:
    _, headers, _ = get(f"{address}/")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_another_address_needs_the_token(served: Callable[..., str], storage: str) -> None:
    address = served(storage, hosts=None, token="secret-of-this-test")
    assert get(f"{address}/api/studies")[0] == 401
    assert get(f"{address}/?token=wrong")[0] == 401
    cookie = f"moopt-token-{address.rpartition(':')[2]}"
    assert get(f"{address}/api/studies", cookie=f"{cookie}=wrong")[0] == 401
    others = f"a/b=c; {cookie}=wrong; x,y; {cookie}=secret-of-this-test"  # a host's other servers have cookies too
    assert get(f"{address}/api/studies", cookie=others, host="any.example")[0] == 200
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(f"{address}/?token=secret-of-this-test") as answer:  # keeps the cookie, and goes on without it
        assert answer.status == 200
        assert "token" not in answer.url
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with opener.open(f"{address}/study?place=a%20b&token=secret-of-this-test&study=s%26t") as answer:
        assert answer.url == f"{address}/study?place=a+b&study=s%26t"


def test_a_token_never_leads_to_another_host(served: Callable[..., str], storage: str) -> None:
    address = served(storage, hosts=None, token="secret-of-this-test")
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    connection.request("GET", "//evil.example/?token=secret-of-this-test")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["location"]) == (303, "/evil.example/")
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    connection.close()


def test_a_storage_that_vanishes_is_said(served: Callable[..., str], storage: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.journal"
    copy.write_bytes(Path(storage).read_bytes())
    address = served(str(copy))
    assert told(at(address, str(copy), "plain", "page"))["whole"]["name"] == "plain"
    copy.unlink()
    status, _, body = get(at(address, str(copy), "plain", "page"))
    assert status == 503
    assert b"cannot be read any more" in body


def test_the_command_refuses_options_that_would_do_nothing(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("mine")
    for given, expected in (
        (["x.journal", "--exports", str(tmp_path)], "--exports needs the file of a study"),
        (["x.journal", "--host", ""], "empty --host"),
        (["x.journal", "--host", "192.0.2.1"], "Give another --host"),
    ):
        found = CliRunner().invoke(app, ["dashboard", *given])
        assert found.exit_code == 2
        assert expected in found.stderr


def test_the_command_refuses_a_port_that_is_taken(address: str) -> None:
    port = address.rpartition(":")[2]
    found = CliRunner().invoke(app, ["dashboard", "x.journal", "--port", port])
    assert found.exit_code == 2
    assert "Give another --port" in found.output


def test_exports_go_into_the_folder_given_and_nowhere_else(
    served: Callable[..., str], tiny: Path, tmp_path: Path
) -> None:
    from moopt_problems import BitAllocation

    path, folder = str(tmp_path / "s.journal"), tmp_path / "exports"
    how: dict[str, Any] = {"text": "prose", "tokens": 64, "context": 64, "held_out": 0, "validation": 0}
    problem = BitAllocation(str(tiny), bits=(4, 8), group_size=32, sensitivities=None, **how)
    study = moopt.Study("bits", problem, "random", path).run(trials=2)
    address = served(path, studies=[study], exports=folder)
    assert told(at(address, path, "bits", "trials/0"))["exports"] == str(folder)

    def post(asked: Any, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            at(address, path, "bits", "exports"), json.dumps(asked).encode(), headers, method="POST"
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            return error.code, json.loads(body) if body.startswith(b"{") else body

    good = {"trial": 0, "format": "moopt", "folder": "mine"}
    assert post(good)[0] == 403
    assert post(good, Origin="http://evil.example")[0] == 403
    status, found = post(good, Origin=address)
    assert status == 200, found
    assert found["path"] == str(folder / "mine")
    assert (folder / "mine" / "moopt.json").exists()
    for wrong, said in (
        ({**good, "folder": "../out"}, "expected letters"),
        ({**good, "folder": "/tmp/out"}, "expected letters"),
        ({**good, "folder": ".hidden"}, "expected letters"),
        ({**good, "folder": "mine"}, "exists already"),
        ({**good, "folder": "b", "format": "no"}, "There is no format"),
        ({**good, "folder": "b", "trial": 9}, "no completed trial"),
        ({**good, "folder": "b", "trial": "0"}, "expected a number"),
        ([], "expected a number"),
    ):
        status, found = post(wrong, Origin=address)
        assert status == 400
        assert said in found["error"]
    assert sorted(each.name for each in folder.iterdir()) == ["mine"]
    assert {each.name for each in tmp_path.iterdir()} == {"s.journal", "s.journal.owner", "exports"}


def test_without_the_studys_file_nothing_is_exported(address: str, storage: str) -> None:
    assert told(at(address, storage, "plain", "trials/0"))["exports"] is None
    request = urllib.request.Request(
        at(address, storage, "plain", "exports"), b"{}", {"Origin": address}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert b"Start the dashboard with the study's file" in refused.value.read()

"""The test Hub itself, by plain HTTP: what the clients rely on and never try out."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.hub


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body


@pytest.fixture
def ask(hub):
    """`ask(method, path, json or bytes, token, headers)` sends one request."""

    def send(method, path, content=None, token=hub.token, **headers):
        body = content if isinstance(content, (bytes, type(None))) else json.dumps(content).encode()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = path if path.startswith("http") else hub.endpoint + path
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    return send


def commit_body(*operations, **header):
    lines = [{"key": "header", "value": {"summary": "test", **header}}]
    lines += [{"key": key, "value": value} for key, value in operations]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def net(hub, ask):
    """The path of a repository with one regular file, digits.txt."""
    assert ask("POST", "/api/repos/create", {"name": "net"}).status == 200
    body = commit_body(("file", {"path": "digits.txt", "content": "MDEyMzQ1Njc4OQ==", "encoding": "base64"}))
    assert ask("POST", "/api/models/tester/net/commit/main", body).status == 200
    return "/tester/net/resolve/main/digits.txt"


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(ask, net, asked, status, body, content_range):
    answer = ask("GET", net, Range=asked)
    assert (answer.status, answer.body, answer.headers["Content-Range"]) == (status, body, content_range)


def test_headers_of_a_file_and_of_errors(hub, ask, net):
    commit = hub.repo("tester/net").branches["main"]
    head = ask("HEAD", net)
    assert head.body == b""
    assert head.headers["Content-Length"] == "10"
    assert head.headers["X-Repo-Commit"] == commit
    assert head.headers["ETag"] == f'"{hashlib.sha1(b"blob 10" + bytes(1) + b"0123456789").hexdigest()}"'
    assert head.headers["X-Linked-Etag"] is None

    missing = ask("GET", "/tester/net/resolve/main/none.txt")
    assert (missing.status, missing.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert missing.headers["X-Repo-Commit"] == commit, "the client remembers by commit that a file does not exist"
    wrong = ask("GET", "/tester/net/resolve/v9/digits.txt")
    assert (wrong.status, wrong.headers["X-Error-Code"]) == (404, "RevisionNotFound")
    for token, status in ((hub.token, 404), (None, 401)):
        nowhere = ask("GET", "/api/models/tester/other", token=token)
        assert (nowhere.status, nowhere.headers["X-Error-Code"]) == (status, "RepoNotFound")
    assert ask("GET", "/api/models/tester/net", token="hf_unknown").status == 401
    assert ask("GET", "/api/nonsense").status == 404


def test_large_files_need_a_signature_and_the_right_content(hub, ask, net):
    content = b"weights"
    oid = hashlib.sha256(content).hexdigest()
    named = commit_body(("lfsFile", {"path": "w.bin", "algo": "sha256", "oid": oid, "size": 7}))
    assert ask("POST", "/api/models/tester/net/commit/main", named).status == 400, "never uploaded"

    batch = {"objects": [{"oid": oid, "size": 7}]}
    answer = ask("POST", "/tester/net.git/info/lfs/objects/batch", batch)
    actions = json.loads(answer.body)["objects"][0]["actions"]
    href, verify = actions["upload"]["href"], actions["verify"]["href"]
    assert ask("PUT", href.partition("?")[0], content, token=None).status == 403
    assert ask("PUT", href, b"weightx", token=None).status == 400
    assert ask("PUT", href, b"weight", token=None).status == 400
    assert ask("POST", verify, batch["objects"][0]).status == 404
    assert ask("PUT", href, content, token=None).status == 200
    assert ask("POST", verify, batch["objects"][0]).status == 200
    assert ask("POST", "/api/models/tester/net/commit/main", named).status == 200

    head = ask("HEAD", "/tester/net/resolve/main/w.bin")
    assert (head.headers["X-Linked-Etag"], head.headers["X-Linked-Size"]) == (f'"{oid}"', "7")
    assert "actions" not in json.loads(ask("POST", "/tester/net.git/info/lfs/objects/batch", batch).body)["objects"][0]


@pytest.mark.parametrize("path", ["../out.txt", "/etc/x", "a/../../b", ""])
def test_a_commit_with_a_bad_part_is_refused_as_a_whole(hub, ask, net, path):
    good = ("file", {"path": "good.txt", "content": "", "encoding": "base64"})
    bad = ("file", {"path": path, "content": "", "encoding": "base64"})
    for operation in (bad, ("deletedFile", {"path": "none.txt"}), ("rename", {"path": "a"})):
        assert ask("POST", "/api/models/tester/net/commit/main", commit_body(good, operation)).status in (400, 404)
    assert "good.txt" not in hub.repo("tester/net").files()
    assert len(hub.repo("tester/net").commits) == 2


def test_faults_are_ordered_counted_and_logged(hub, ask, net):
    hub.fail("GET", "digits", status=429, retry_after=3, times=2, after=1)
    answers = [ask("GET", net) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 429, 429, 200]
    assert answers[1].headers["Retry-After"] == "3"
    assert ask("HEAD", net).status == 200, "a fault of GET spares HEAD"

    order = {"path_pattern": "digits", "status": "corrupt"}
    assert ask("POST", "/_test/fail", order).status == 200
    corrupt = ask("GET", net).body
    assert len(corrupt) == 10
    assert sum(a != b for a, b in zip(corrupt, b"0123456789", strict=True)) == 1

    hub.fail("GET", status="drop")
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask("GET", net)
    assert caught.value.partial == b"01234"
    hub.fail("GET", status="reset")
    with pytest.raises((ConnectionResetError, http.client.HTTPException)):
        ask("GET", net)
    hub.fail("POST", "/commit/", status="drop")
    with pytest.raises((ConnectionError, urllib.error.URLError, http.client.HTTPException)):
        ask("POST", "/api/models/tester/net/commit/main", commit_body())
    assert len(hub.repo("tester/net").commits) == 2, "half a request changes nothing"
    assert [entry.status for entry in hub.log][-3:] == [0, 0, 0]
    assert hub.token not in repr(hub.log)


def test_commit_ids_are_the_same_in_every_run(hub, ask, net):
    assert hub.endpoint.startswith("http://127.0.0.1:")
    repo = hub.repo("tester/net")
    again = type(repo)("tester/net", "model")
    assert again.branches["main"] == repo.history()[-1].id
    assert repo.history()[0].date > repo.history()[-1].date


def test_many_small_requests_do_not_wait_for_each_other(hub, ask, net):
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    start = time.monotonic()
    for _ in range(50):
        connection.request("GET", net)
        assert connection.getresponse().read() == b"0123456789"
    connection.close()
    assert time.monotonic() - start < 1.5, "40 ms each would mean that headers and body wait for an acknowledgement"


def test_our_packages_are_hidden_from_clients_only_on_request(run_client):
    hidden = run_client("import modeling_reg4pru", check=False)
    assert "ModuleNotFoundError: No module named 'modeling_reg4pru'" in hidden.stderr
    child = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import datasets_fives']))"
    assert run_client(child, check=False).returncode == 1
    seen = run_client("import importlib.util as u; print(u.find_spec('modeling_reg4pru') is None)", block_modules=())
    assert seen.stdout == "False\n"

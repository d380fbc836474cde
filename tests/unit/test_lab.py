"""The lab's plain parts: names, locks, records, cores, settings, files and refusals."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bottleneck.plan.master import reactor_entries
from bottleneck.profile import Profile, load_profile
from cli.lab_commands import app
from lab import layout, namespaces, node_processes, requirements, salt_config
from lab.layout import CONTROL, LabError, Record
from lab.requirements import control_cores, plan_cores

REPOSITORY = Path(__file__).resolve().parents[2]
KEYS = {name: (f"private {name}", f"public {name}") for name in (CONTROL, "node0", "node1")}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(REPOSITORY / "profiles" / "embedded.yaml")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLUSTER_LAB_DIRECTORY", str(tmp_path / "labs"))
    return tmp_path / "labs"


def _record(name: str = "demo") -> Record:
    return Record(name, "embedded", "1.0", "/p.yaml", "digest", layout.boot_id(), 1.5)


@pytest.mark.parametrize("name", ["", "Demo", "a/b", "..", "-a", "a-", "a b", "a" * 33, "lab\n"])
def test_illegal_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab") as caught:
        layout.check_name(name)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["a", "demo", "lab-2", "a" * 32])
def test_legal_names(name: str) -> None:
    assert layout.check_name(name) == name


def test_record_survives_the_file(base: Path) -> None:
    record = _record()
    record.inits = {"node0": [12, 345]}
    (base / "demo").mkdir(parents=True)
    record.save()

    assert layout.load_record("demo") == record
    assert layout.load_record("other") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "unknown": 1}'])
def test_damaged_record_is_no_record(base: Path, text: str) -> None:
    (base / "demo").mkdir(parents=True)
    (base / "demo/lab.json").write_text(text)

    assert layout.load_record("demo") is None


def test_lock_holds_others_off_and_leaves_no_file(base: Path) -> None:
    with layout.locked("demo"):
        with pytest.raises(LabError, match="another command has held lab demo"), layout.locked("demo", 0.1):
            pass
        with layout.locked("other", 0.1):
            pass
    assert list(base.iterdir()) == []


def test_one_reader_of_the_process_table_serves_nodes_and_lab() -> None:
    assert Path(node_processes.__file__).resolve() == layout.REPOSITORY / "_utils" / "node_processes.py"
    own = [path for path in (layout.REPOSITORY / "lab").glob("*.py") if not path.is_symlink()]
    assert [path.name for path in own if re.search(r"/stat\b", path.read_text())] == []


def test_cores_are_disjoint_and_leave_the_first_for_control(profile: Profile) -> None:
    assert plan_cores(profile, [0, 1, 2, 3]) == ({"node0": [1], "node1": [2]}, [])
    assert plan_cores(profile, [0, 1]) == ({"node0": [0], "node1": [1]}, [])


def test_the_control_node_has_cores_of_its_own_or_those_of_the_last_node() -> None:
    plan = {"node0": [1], "node1": [2]}
    assert control_cores(plan, [0, 1, 2, 3]) == [0, 3]
    assert control_cores({"node0": [0], "node1": [1]}, [0, 1]) == [1], "a head's core has the least time to spare"


def test_too_few_cores_are_shared_with_a_note(profile: Profile) -> None:
    plan, notes = plan_cores(profile, [5])

    assert plan == {"node0": [5], "node1": [5]}
    assert notes == ["the nodes want 2 cores and this machine has 1: they slow each other down"]


def test_master_never_accepts_on_its_own(profile: Profile) -> None:
    settings = salt_config.lab_master_settings(profile, "/profiles/embedded.yaml")

    assert settings["auto_accept"] is False
    assert settings["open_mode"] is False
    assert not {"autosign_file", "autosign_grains_dir"} & set(settings)
    assert settings["interface"] == "10.77.0.1"
    assert settings["file_roots"] == {"base": [str(REPOSITORY / "salt")]}
    assert settings["cluster_profile"] == "/profiles/embedded.yaml"


def test_the_reactors_are_files_that_exist() -> None:
    entries = reactor_entries(REPOSITORY)

    assert {"cluster/telemetry/window": [str(REPOSITORY / "reactor/window.sls")]} in entries
    assert all(Path(name).is_file() for entry in entries for names in entry.values() for name in names)


def test_keys_are_placed_by_identity(profile: Profile) -> None:
    files = salt_config.salt_files(profile, "/p.yaml", KEYS)

    assert files[CONTROL]["/etc/salt/pki/master/minions/node1"] == ("public node1", 0o644)
    assert files[CONTROL]["/etc/salt/pki/master/master.pem"] == ("private control", 0o400)
    assert files["node1"]["/etc/salt/pki/minion/minion.pem"] == ("private node1", 0o400)
    assert files["node1"]["/etc/salt/pki/minion/minion_master.pub"] == ("public control", 0o644)
    assert not any(
        "private" in text for node in ("node0", "node1") for text, mode in files[node].values() if mode & 0o77
    )
    minion = yaml.safe_load(files["node0"]["/etc/salt/minion"][0])
    assert (minion["id"], minion["master"]) == ("node0", "10.77.0.1")


def test_environment_reaches_the_cluster_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PIP_PROXY", "http://elsewhere:1")
    monkeypatch.setenv("CLUSTER_LAB", "demo")
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere:1")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")

    variables = namespaces.environment("10.77.0.1", 3128, ["localhost", "10.77.1.10"])

    assert variables["https_proxy"] == variables["http_proxy"] == "http://10.77.0.1:3128"
    assert variables["no_proxy"] == "localhost,10.77.1.10"
    assert variables["PIP_FIND_LINKS"] == "/wheels"
    assert variables["PATH"].split(":")[0].endswith("/bin")
    assert not {"PIP_PROXY", "CLUSTER_LAB", "HTTPS_PROXY", "PYTHONPATH"} & set(variables)


def test_other_disks_are_found_but_not_our_own_trees(base: Path, tmp_path: Path) -> None:
    points = {"/": "ext4", str(tmp_path): "xfs", "/boot": "ext4", "/proc": "proc", str(base): "ext4", "/sys": "sysfs"}
    (base / "x").mkdir(parents=True)
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"1 1 8:1 / {path} rw - {kind} /dev/x rw\n" for path, kind in points.items()))

    found = namespaces.lower_mounts(file)

    assert found == ([] if str(tmp_path).startswith("/tmp") else [str(tmp_path)])


def test_names_are_looked_up_in_files_alone(tmp_path: Path) -> None:
    file = tmp_path / "nsswitch.conf"
    file.write_text("passwd: files\nhosts: files dns\n")

    assert namespaces._without_resolver(file) == "passwd: files\nhosts: files\n"
    assert namespaces._without_resolver(tmp_path / "absent") == "hosts: files\n"


def test_without_root_the_command_to_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["/venv/bin/cluster", "lab", "up"])

    with pytest.raises(LabError, match="takes root") as caught:
        requirements.check_root()

    assert caught.value.next_command == "sudo -E /venv/bin/cluster lab up"
    assert caught.value.code == 4


def test_missing_tools_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool in ("tini", "tc", "ip") else f"/{tool}")

    with pytest.raises(LabError, match="not installed: ip, tc, tini") as caught:
        requirements.check_machine()

    assert caught.value.next_command == "sudo apt-get install iproute2 tini"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["up", "No Such"], 2, "cannot name a lab"),
        (["throttle", "direct"], 2, "either --rate or --restore"),
        (["throttle", "direct", "--rate", "1 Gbit/s", "--restore"], 2, "either --rate or --restore"),
        (["throttle", "direct", "--rate", "fast"], 2, "--rate"),
        (["slow", "node0"], 2, "either --cores, --disk or --restore"),
        (["slow", "node0", "--disk", "fast"], 2, "--disk"),
        (["exec", "node0", "--lab", "absent", "--", "true"], 4, "lab absent is not up"),
    ],
)
def test_refusals(base: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, words: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: f"/{tool}")

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == status
    assert words in result.output


def test_status_of_no_lab_is_down(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    result = CliRunner().invoke(app, ["status", "absent", "--json"])

    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"schema": 1, "name": "absent", "up": False, "state": "down"}

"""Records of the control node: whole, or an error with the file and the next command."""

from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError

from bottleneck.plan.nodes import deployment_record
from bottleneck.profile import find_profile, load_profile
from control import records


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00"])
@pytest.mark.parametrize("name", [records.DEPLOYMENT, records.STARTING, records.CEILINGS, records.REPROVISION])
def test_a_broken_record_is_no_empty_one(tmp_path: Path, name: str, text: str) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    assert records.read(opts, name) == {}, "there is none"
    (tmp_path / name).write_text(text)
    with pytest.raises(records.RecordError, match=rf"{tmp_path}/{name}: .*write it anew with: .*cluster "):
        records.read(opts, name)


def test_a_deployments_record_is_read_as_one(tmp_path: Path) -> None:
    opts = {"cluster_directory": str(tmp_path)}
    written = deployment_record(load_profile(find_profile("embedded")), "tp2", {"max_num_seqs": 1})
    records.write(opts, records.DEPLOYMENT, written)
    found = records.deployment(records.read(opts, records.DEPLOYMENT))
    assert found.settings.max_num_seqs == 1 and found.nodes == ["node0", "node1"]
    records.write(opts, records.DEPLOYMENT, {key: value for key, value in written.items() if key != "settings"})
    with pytest.raises(records.RecordError, match=r"deployment.json: settings: field required; .*cluster undeploy"):
        records.deployment(records.read(opts, records.DEPLOYMENT))
    with pytest.raises(CommandExecutionError, match="nothing is deployed; deploy it first: cluster deploy"):
        records.deployment({})

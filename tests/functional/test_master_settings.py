"""Settings of the master, as Salt itself takes them."""

from pathlib import Path
from typing import Any

import salt.config
from salt.runner import Runner, RunnerClient

from bottleneck.plan.master import master_settings
from bottleneck.profile import find_profile, load_profile


def test_the_reactors_runners_leave_no_job_and_a_persons_do() -> None:
    settings = master_settings(load_profile(find_profile("embedded")), "/p.yaml", Path(__file__).parents[2])
    opts = salt.config.apply_master_config(settings)

    def stores(kind: Any) -> Any:
        client = kind.__new__(kind)
        client.opts = opts
        return client.store_job

    assert stores(RunnerClient) is False
    assert stores(Runner) is True

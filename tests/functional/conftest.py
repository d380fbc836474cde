"""Salt's loaders over our modules and states, with no daemon."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import salt._logging
import salt.config
from saltfactories.utils.functional import Loaders

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaders]:
    root = tmp_path_factory.mktemp("minion")
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    options: dict[str, Any] = salt.config.minion_config(None)
    options.update(
        {
            "id": "node0",
            "root_dir": str(root),
            "cachedir": str(root / "cache"),
            "pki_dir": str(root / "pki"),
            "extension_modules": str(root / "extmods"),
            "file_client": "local",
            "file_roots": {"base": [str(REPOSITORY / "salt")]},
            "module_dirs": [],
            "modules_dirs": [str(REPOSITORY / "_modules")],
            "states_dirs": [str(REPOSITORY / "_states")],
            "enable_fqdns_grains": False,
            "enable_gpu_grains": False,
            "test": False,
        }
    )
    found = Loaders(options)
    yield found
    found.reset_state()

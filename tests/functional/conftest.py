"""Salt's loaders over our modules and states, with no daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import salt._logging
import salt.config
from saltfactories.utils.functional import Loaders

from tests.functional.minion_options import minion_options

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaders]:
    root = tmp_path_factory.mktemp("minion")
    # Salt's early handler would write to a stream that pytest has closed by then.
    salt._logging.shutdown_temp_handler()
    options = minion_options(root, "node0", pki_dir=str(root / "pki"), module_dirs=[], test=False)
    found = Loaders(options)
    yield found
    found.reset_state()

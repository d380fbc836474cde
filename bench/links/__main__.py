"""Hold predictions over links against what pairs of cards took; write the page, or make data of a lab's records.

python -m bench.links                                   print the page
python -m bench.links --write                           write doc/reference/what-if-links.md and its picture
python -m bench.links --add FOLDER --name h100 --write  make tests/data/links/h100.json of `cluster gpu-lab --output
                                                        FOLDER` first
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.links.campaign import FOLDER, campaigns
from bench.links.chart import chart
from bench.links.page import PICTURE, answering, page, panels
from bench.links.predictions import Predictor
from bench.links.records import RecordsError, campaign_of

PAGE = Path(__file__).resolve().parents[2] / "doc" / "reference" / "what-if-links.md"


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page and its picture instead of printing it")
    parser.add_argument("--add", type=Path, nargs="+", metavar="RECORDS", help="folders that `cluster gpu-lab` left")
    parser.add_argument("--name", help="of the file that --add makes")
    arguments = parser.parse_args()
    if arguments.add:
        if not arguments.name:
            parser.error("--add without --name; expected a name such as h100-2026-11-28")
        try:
            made = campaign_of(arguments.add)
        except RecordsError as error:
            raise SystemExit(str(error)) from None
        path = FOLDER / f"{arguments.name}.json"
        path.write_text(made.model_dump_json(indent=1, by_alias=True, exclude_defaults=True) + "\n", encoding="utf-8")
        print(f"{path}: {len(made.measured)} figures", file=sys.stderr)
        if not arguments.write:
            return
    predictors = [Predictor(campaign, path) for path, campaign in campaigns().items()]
    text = page(predictors)
    if not arguments.write:
        print(text)
        return
    PAGE.write_text(text, encoding="utf-8")
    newest = answering(predictors)
    own = newest.card_calibrations[len(newest.card_calibrations) // 2]
    known = {parallel: newest.pair_calibrations.get(parallel, own) for parallel in ("tensor", "pipeline")}
    PAGE.with_name(PICTURE).write_text(
        chart(panels(newest, known), "TP=2 against PP=2 over the rate of a cable"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()

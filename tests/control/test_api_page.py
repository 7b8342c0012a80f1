"""docs/api.md says what the API does."""

import re

from api_page import PAGE, page

from ringfence_server.control.api.app import create_api
from ringfence_server.control.api.openapi import describe


def test_the_page_is_the_one_that_the_document_makes():
    assert PAGE.read_text() == page(), "run `python tests/support/api_page.py`"


def test_every_problem_that_a_route_names_is_explained():
    text = PAGE.read_text()
    for item in describe(create_api())["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                for code in re.findall(r"`([a-z-]+)`", response["description"]) if int(status) >= 400 else ():
                    assert f"| `{code}` | {status} |" in text, code

"""Orders toys at a shop that wants a key: an effect of the module's own."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Final

import orjson

from cmis_stream.store.decisions import Carried, Permanent, Temporary

SHOP_KEY: Final = "toy_shop_key"
WITHIN_S: Final = 10.0


def order(carried: Carried) -> None:
    """The shop knows the order by the effect's id, however often it comes."""
    key = carried.reveal(SHOP_KEY)
    if key is None:
        raise Temporary(f"the secret {SHOP_KEY} is not set")
    headers = {"Authorization": f"Bearer {key.text()}", "Idempotency-Key": carried.id, "Content-Type": "application/json"}
    request = urllib.request.Request(carried.body["shop"], orjson.dumps({"name": carried.body["name"]}), headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=WITHIN_S):
            pass
    except urllib.error.HTTPError as error:
        raise (Permanent if error.code < 500 else Temporary)(f"the shop answered {error.code}") from None
    except OSError as error:
        raise Temporary(f"the shop does not answer: {error}") from None

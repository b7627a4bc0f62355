"""The table of the keys of ``generation_config.json``. ``settings/generation.py`` reads or refuses them."""

from __future__ import annotations

from foveate.export.keys.key_table import Key, Table
from foveate.export.settings.generation import IRRELEVANT, REFUSED, USED

__all__ = ["GENERATION"]


GENERATION: Table = {
    **{name: Key("used", why) for name, why in USED.items()},
    **{name: Key("irrelevant", why) for name, why in IRRELEVANT.items()},
    **{name: Key("refused", why, by="export/settings/generation.py") for name, why in REFUSED.items()},
}

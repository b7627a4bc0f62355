"""The table of the keys of ``generation_config.json``. ``settings/generation.py`` reads or refuses them."""

from __future__ import annotations

from foveate.export.keys.key_table import Key, Table
from foveate.export.settings.generation import KEYS

__all__ = ["GENERATION"]


GENERATION: Table = {
    name: Key(status, why, by="export/settings/generation.py") for name, (status, why) in KEYS.items()
}

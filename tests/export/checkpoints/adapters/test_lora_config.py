"""The settings of an adapter: every key of peft is used, known to change nothing, or refused by name."""

from __future__ import annotations

import dataclasses

import peft
import pytest

from foveate.engines.errors import UserError
from foveate.export import models
from foveate.export.checkpoints.adapters import lora_config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3"),
        ({"peft_type": None}, "peft_type None"),
        *(({key: {"r": 1}}, key) for key in lora_config.REFUSED),
        *(
            ({"init_lora_weights": start}, "init_lora_weights")
            for start in ("pissa", "pissa_niter_4", "olora", "loftq")
        ),
        ({"bias": "some"}, "bias some"),
        ({"r": "many"}, "whole number"),
        ({"r": 10**400}, "whole number"),
        ({"lora_alpha": 10**400}, "damaged"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, expected a text"),
        ({"rank_pattern": {"(": 3}}, "damaged"),
        ({"alpha_pattern": {"q_proj": "x"}}, "damaged"),
        ({"r": 2}, r"expected \[2, 64\]"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"modules_to_save": ["embed_tokens"]}, "lacks modules"),
    ],
)
def test_adapters_that_would_come_out_wrong_are_refused_by_name(base, adapter, edit_json, changes, named):
    edit_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(UserError, match=named) as error:
        models.load(str(base("llava")), adapter=str(adapter))
    assert str(error.value).count(" | ") == 2


def test_keys_that_are_not_known_are_named(base, adapter, edit_json, capsys):
    edit_json(adapter / "adapter_config.json", use_of_tomorrow=True, other_of_tomorrow=False)
    models.load(str(base("llava")), adapter=str(adapter))
    said = capsys.readouterr().err
    assert "use_of_tomorrow" in said and "other_of_tomorrow" not in said


def test_every_key_of_peft_is_in_the_table():
    keys = {each.name for each in dataclasses.fields(peft.LoraConfig)}
    tables = [set(lora_config.USED), set(lora_config.IRRELEVANT), set(lora_config.REFUSED)]
    assert keys - set.union(*tables) == set()
    assert sum(map(len, tables)) == len(set.union(*tables))  # each in one of them

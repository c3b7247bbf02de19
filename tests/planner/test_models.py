"""Memory, links, profiles, estimates and fits."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from distserve.engine.errors import ParallelismError
from distserve.engine.rank import Rank
from distserve.planner.commands.arguments import noted
from distserve.planner.errors import InvalidProfile, InvalidRequest, NoProfile
from distserve.planner.fitting import fit_database, profile_text, read_records
from distserve.planner.links import load_link
from distserve.planner.memory import kv_tokens
from distserve.planner.models import KNOWN_MODELS, find_model, from_config
from distserve.planner.profiles import load_profile
from distserve.planner.roofline import ACCELERATORS, estimate, with_estimates


def test_memory_formula_gives_every_row_of_the_measured_table():
    profile = load_profile()
    assert len(profile.max_tokens) == 76
    for (name, tp, pp), tokens in profile.max_tokens.items():
        assert kv_tokens(KNOWN_MODELS[name], tp, pp, profile.kv_budget_bytes) == tokens


def test_a_model_that_does_not_fit_has_no_tokens():
    assert kv_tokens(find_model("175b"), 1, 1, 80e9) == 0


def test_kv_bytes_of_a_token():
    # 1.13 GB for a prompt of 512 tokens of OPT-66B, as the DistServe paper states.
    assert 512 * find_model("66b").kv_bytes_per_token == pytest.approx(1.13 * 2**30, rel=0.01)


@pytest.mark.parametrize("alias", ["13b", "opt_13b", "opt-13b", "facebook/opt-13b"])
def test_model_aliases(alias):
    assert find_model(alias).name == "facebook/opt-13b"


def test_a_model_by_its_config(tmp_path):
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = find_model(str(tmp_path))
    assert model.parameters == pytest.approx(8.03e9, rel=0.01)
    assert model.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2


FALCON = {"model_type": "falcon", "vocab_size": 65024}
FALCON_7B = FALCON | {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71}
FALCON_40B = FALCON | {"hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128}
STARCODER = {
    "model_type": "gpt_bigcode",
    "n_embd": 6144,
    "n_head": 48,
    "n_layer": 40,
    "n_positions": 8192,
    "n_inner": 24576,
    "vocab_size": 49152,
}


@pytest.mark.parametrize(
    ("config", "kv_heads", "parameters"),
    [
        (FALCON_7B | {"multi_query": True, "num_kv_heads": 71}, 1, 6_921_720_704),
        (FALCON_7B, 1, 6_921_720_704),
        (FALCON_40B | {"new_decoder_architecture": True, "num_kv_heads": 8}, 8, 41_303_293_952),
        (STARCODER | {"multi_query": True}, 1, 15_517_456_384),
        (STARCODER, 1, 15_517_456_384),
    ],
)
def test_kv_heads_by_the_key_of_the_model_s_family(config, kv_heads, parameters):
    # Parameters as transformers counts them in the model that it makes of the config.
    model = from_config(config)
    assert model.kv_bytes_per_token == 2 * model.layers * kv_heads * model.head_dim * 2
    assert model.parameters == pytest.approx(parameters, rel=0.001)


GPT_J = {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "n_positions": 2048,
         "vocab_size": 50400}  # fmt: skip
GEMMA_7B = {
    "model_type": "gemma", "hidden_size": 3072, "intermediate_size": 24576, "head_dim": 256,
    "num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": 28,
    "max_position_embeddings": 8192, "vocab_size": 256000,
}  # fmt: skip
STARCODER2_15B = {
    "model_type": "starcoder2", "hidden_size": 6144, "intermediate_size": 24576,
    "num_attention_heads": 48, "num_key_value_heads": 4, "num_hidden_layers": 40,
    "max_position_embeddings": 16384, "vocab_size": 49152, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(GPT_J, 6_050_882_784), (GEMMA_7B, 8_537_680_896), (STARCODER2_15B, 15_957_889_024)],
)
def test_networks_of_two_matrices_and_tables_of_one_by_their_family(config, parameters):
    # Parameters as transformers counts them.
    model = from_config(config)
    assert model.parameters == pytest.approx(parameters, rel=0.001)
    assert not model.assumed


def test_a_family_that_nobody_knows_is_told(capsys):
    model = from_config(GEMMA_7B | {"model_type": "novel"}, "m")
    assert (model.ffn_matrices, model.tied_embeddings) == (3, False)
    assert noted(model) is model
    said = capsys.readouterr().err
    assert "model_type novel" in said and "three matrices and embeddings of its own" in said
    llama = from_config(GEMMA_7B | {"model_type": "llama"}, "m")
    assert model == llama, "the same shape, and so the same plan"
    noted(from_config(GEMMA_7B))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("heads", "kv_heads"), [(28, 4), (40, 40), (32, 8), (71, 1), (12, 8)])
def test_tensor_degrees_are_those_that_the_engine_takes(heads, kv_heads):
    """28 heads on 4 is Qwen2.5-7B, of which 7 and 14 ranks cannot share the KV heads."""

    def takes(tensor: int) -> bool:
        rank = Rank(tensor=tensor)
        try:
            return bool(rank.heads(heads).size and rank.kv_heads(kv_heads).size)
        except ParallelismError:
            return False

    model = replace(find_model("13b"), heads=heads, kv_heads=kv_heads)
    assert model.tensor_degrees(heads) == [n for n in range(1, heads + 1) if takes(n)]


def test_without_multi_query_each_head_has_keys_and_values():
    assert from_config(FALCON_7B | {"multi_query": False}).kv_heads == 71
    assert from_config(STARCODER | {"multi_query": False}).kv_heads == 48


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("num_local_experts", "a mixture of experts"),
        ("num_experts", "a mixture of experts"),
        ("n_routed_experts", "a mixture of experts"),
        ("moe_num_experts", "a mixture of experts"),
        ("kv_lora_rank", "latent attention"),
        ("quantization_config", "a quantised checkpoint"),
    ],
)
def test_what_a_shape_cannot_say_is_refused_with_its_key(key, what):
    with pytest.raises(InvalidRequest, match=f"has {key}: {what} is not modelled; .*mode: Manual"):
        from_config(STARCODER | {key: 64})
    with pytest.raises(InvalidRequest, match=key):
        from_config({"text_config": STARCODER | {key: 64}})
    with pytest.raises(InvalidRequest, match=key):
        from_config({"text_config": STARCODER, key: 64})
    assert from_config(STARCODER | {key: None}).kv_heads == 1, "a dense one of such a family"


def test_configs_that_cannot_be_used(tmp_path):
    with pytest.raises(InvalidRequest, match="lacks num_hidden_layers"):
        from_config({"hidden_size": 8, "num_attention_heads": 2})
    for content in ("[]", '{"hidden_size": Infinity}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(InvalidRequest, match="is not a transformers config"):
            find_model(str(tmp_path))
    with pytest.raises(InvalidRequest, match="unknown model"):
        find_model("nobody/knows")


@pytest.mark.parametrize(
    "key", ["num_attention_heads", "num_hidden_layers", "num_kv_heads", "head_dim", "ffn_dim"]
)
def test_a_size_below_1_is_refused_with_its_key(key):
    plain = FALCON_7B | {"new_decoder_architecture": True}
    for size in (0, -1):
        if size == 0 and key in ("num_kv_heads", "head_dim", "ffn_dim"):
            assert from_config(plain | {key: 0}) == from_config(plain), "as if it were not said"
            continue
        with pytest.raises(InvalidRequest, match=f"config has {key} {size}; it is 1 or more"):
            from_config(plain | {key: size})


def test_links_reproduce_their_measurements_and_extend_beyond_them():
    inside, between = load_link("a100-dgx"), load_link("a100-dgx", "inter_node")
    size = 64 * 2**20
    assert inside.transfer_ms(size) == pytest.approx(0.294)
    assert between.transfer_ms(size) == pytest.approx(8.586)
    assert inside.bytes_per_ms * 1000 == pytest.approx(228e9, rel=0.01)
    assert between.transfer_ms(10 * size) == pytest.approx(10 * 8.586, rel=1e-6)
    assert inside.transfer_ms(1) == inside.time_ms[0]
    assert inside.transfer_ms(3000) == pytest.approx(0.008 + 0.002 * (3000 - 2048) / 8192)


def test_a_link_of_one_s_own(tmp_path):
    path = tmp_path / "probe.csv"
    path.write_text("size_bytes,intra_node_ms,inter_node_ms\n1000,1,2\n2000,2,4\n")
    assert load_link(str(path), "inter_node").transfer_ms(1500) == 3
    path.write_text("size_bytes,intra_node_ms\n1000,1\n2000,2\n")
    with pytest.raises(InvalidProfile, match="columns must be"):
        load_link(str(path), "inter_node")
    with pytest.raises(InvalidProfile, match="unknown network"):
        load_link("token-ring")


@pytest.mark.parametrize(
    "rows",
    [
        "1000,1\n2000,2,4",
        "1000,1,\n2000,2,4",
        "1000,1,2\n2000,2,0",
        "1000,1,2\n2000,2,-4\n3000,1,5",
        "1000,1,2\n2000,2,inf",
        "1000,1,nan\n2000,2,4",
        "0,1,2\n2000,2,4",
        "1000,1,2",
        "1000,1,2\n1000,1,2",
    ],
)
def test_a_network_table_with_a_row_that_cannot_be_is_refused(tmp_path, rows):
    path = tmp_path / "probe.csv"
    path.write_text(f"size_bytes,intra_node_ms,inter_node_ms\n{rows}\n")
    with pytest.raises(InvalidProfile, match=r"probe\.csv .*above 0"):
        load_link(str(path), "inter_node")


def test_a_network_table_from_a_spreadsheet_starts_with_a_mark(tmp_path):
    path = tmp_path / "probe.csv"
    path.write_text("size_bytes,intra_node_ms,inter_node_ms\n1000,1,2\n2000,2,4\n", "utf-8-sig")
    assert load_link(str(path)).transfer_ms(1500) == 1.5


def test_profiles_that_are_missing_or_wrong(tmp_path):
    with pytest.raises(InvalidProfile, match="unknown hardware profile"):
        load_profile("abacus")
    with pytest.raises(InvalidProfile, match="cannot read"):
        load_profile(str(tmp_path / "none.json"))
    for content in ("[", "[]", '{"m": {"1": {}}}', '{"m": {"1": {"prefill": [1, 2]}}}'):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(InvalidProfile, match="not a hardware profile"):
            load_profile(str(tmp_path / "p.json"))
    profile = load_profile()
    with pytest.raises(NoProfile, match="facebook/opt-175b, give --hardware-profile or --estimate"):
        profile.times(find_model("175b"), 8)
    with pytest.raises(NoProfile, match=r"TP 6 \(known: TP 2, 3, 4, 8\).*; give one of these"):
        profile.times(find_model("66b"), 6)


@pytest.mark.parametrize(("name", "tp"), [("13b", 1), ("13b", 2), ("66b", 2), ("66b", 4)])
def test_estimates_are_near_the_measurements_that_there_are(name, tp):
    model = find_model(name)
    measured = load_profile().times(model, tp)
    estimated = estimate(model, ACCELERATORS["a100-80g"], tp)
    for tokens in (512, 1600):
        ratio = estimated.prefill_ms(tokens, tokens**2) / measured.prefill_ms(tokens, tokens**2)
        assert 0.7 < ratio < 1.4
    for batch in (1, 32, 80):
        ratio = estimated.decode_ms(batch, batch * 800) / measured.decode_ms(batch, batch * 800)
        assert 0.7 < ratio < 1.4


def test_degrees_that_nobody_measured_are_not_said_to_be_estimated():
    """An estimate beside measurements would be the faster one by what it leaves out."""
    kept = with_estimates("a100-80g", "distserve", find_model("13b"))
    with pytest.raises(NoProfile) as told:
        kept.times(find_model("13b"), 8)
    assert "--estimate" not in str(told.value)
    assert kept == load_profile()


def test_estimates_are_marked_and_measurements_kept():
    assert with_estimates("a100-80g", "distserve", find_model("175b")).estimated
    assert not with_estimates("a100-80g", "distserve", find_model("13b")).estimated
    h100 = with_estimates("h100-80g", "distserve", find_model("13b"))
    a100 = estimate(find_model("13b"), ACCELERATORS["a100-80g"], 1)
    assert h100.estimated
    assert h100.times(find_model("13b"), 1).prefill_ms(1000, 10**6) < a100.prefill_ms(1000, 10**6)


def profile_database(path, times, elastic: bool):
    """A database as the profilers write it, filled from a time model."""
    extra = "sp_world_size integer, num_sp_master integer, " if elastic else ""
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            f"CREATE TABLE records (id integer primary key, {extra}tp_world_size integer, "
            "batch_size integer, input_len integer, output_len integer, "
            "avg_prefill_time_usage real, avg_decoding_time_usage real, "
            "prefill_time_stddev real, decoding_time_stddev real, tag text)"
        )
        names = "tp_world_size, batch_size, input_len, output_len, avg_prefill_time_usage, "
        names += "avg_decoding_time_usage, tag"
        for batch in (1, 4, 16, 64, 96, 128, 192):
            for length in (8, 64, 256, 1024):
                row = (
                    2,
                    batch,
                    length,
                    16,
                    times.prefill_ms(batch * length, batch * length**2),
                    times.decode_ms(batch, batch * (length + 1)),
                    "m,x",
                )
                database.execute(f"INSERT INTO records ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                if elastic:
                    database.execute("UPDATE records SET sp_world_size = 1")
        database.commit()


@pytest.mark.parametrize("elastic", [False, True])
def test_a_fit_recovers_the_model_behind_a_profile_database(tmp_path, elastic):
    times = load_profile().times(find_model("13b"), 2)
    profile_database(tmp_path / "db.sqlite", times, elastic)
    fits = fit_database(tmp_path / "db.sqlite", "facebook/opt-13b")
    fitted = fits["facebook/opt-13b", 2]
    assert fitted.records == 28
    assert fitted.prefill_error < 1e-6 and fitted.decode_error < 1e-6
    for found, expected in (
        (fitted.times.prefill, times.prefill),
        (fitted.times.decode_small, times.decode_small),
        (fitted.times.decode_large, times.decode_large),
    ):
        assert found == pytest.approx(expected, rel=1e-6)
    (tmp_path / "mine.json").write_text(profile_text(fits, {"kv_budget_bytes": 1e9}))
    loaded = load_profile(str(tmp_path / "mine.json"))
    assert loaded.times(find_model("13b"), 2).prefill == pytest.approx(times.prefill)
    assert loaded.kv_budget_bytes == 1e9


def test_files_that_are_no_profile_database(tmp_path):
    with pytest.raises(InvalidProfile, match="no such file"):
        read_records(tmp_path / "none")
    (tmp_path / "text").write_text("hello" * 100)
    with pytest.raises(InvalidProfile, match="not a profile database"):
        read_records(tmp_path / "text")

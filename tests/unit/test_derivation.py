import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyservice.derivation import DerivedSecret, is_well_formed, new_nonce

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
MACS = st.binary(min_size=32, max_size=32)


def number_of(text: str) -> int:
    """Base 62 read back, digit by digit."""
    number = 0
    for character in text:
        number = number * 62 + DIGITS.index(character)
    return number


@pytest.mark.parametrize(
    ("mac", "secret", "token_hash", "prefix"),
    [
        pytest.param(
            bytes(range(32)),
            "sk-lmk_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf0qgOvN",
            "d2ba5e11d287aff44fc5408608a35914e8a1d9936142da9f96ce2065015f1c25",
            "sk-lmk_003a",
            id="0, 1, 2 ... 31",
        ),
        pytest.param(
            bytes(32),
            "sk-lmk_000000000000000000000000000000000000000000003t2LV",
            "7e101a26a9c41bb733958248ce6effc002f406474359bb5bd1ac122e5251f2bc",
            "sk-lmk_0000",
            id="smallest",
        ),
        pytest.param(
            b"\xff" * 32,
            "sk-lmk_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp135l0S5",
            "3d7db4b6bd6e6709d94c103f2eecb6bffbc069ff76c679b17e8cadbfedd2aeda",
            "sk-lmk_yhjs",
            id="largest",
        ),
    ],
)
def test_secret_of_a_mac_never_changes(mac: bytes, secret: str, token_hash: str, prefix: str):
    derived = DerivedSecret(mac)

    # What was issued once has to be derivable for ever.
    assert (derived.secret.reveal(), derived.token_hash, derived.prefix) == (secret, token_hash, prefix)


@given(MACS)
def test_secret_holds_the_whole_mac_and_a_checksum(mac: bytes):
    secret = DerivedSecret(mac).secret.reveal()

    assert len(secret) == 56
    assert secret.startswith("sk-lmk_")
    assert number_of(secret[7:50]) == int.from_bytes(mac)
    assert number_of(secret[50:]) == zlib.crc32(secret[:50].encode())


@given(MACS)
def test_token_hash_is_litellms_own_token_id(mac: bytes):
    derived = DerivedSecret(mac)

    assert derived.token_hash == hashlib.sha256(derived.secret.reveal().encode()).hexdigest()


@given(MACS)
def test_every_derived_secret_is_well_formed(mac: bytes):
    assert is_well_formed(DerivedSecret(mac).secret.reveal())


@given(MACS, st.integers(min_value=7, max_value=55), st.sampled_from(DIGITS))
def test_one_changed_character_is_noticed(mac: bytes, place: int, character: str):
    secret = DerivedSecret(mac).secret.reveal()
    changed = secret[:place] + character + secret[place + 1 :]

    assert is_well_formed(changed) == (changed == secret)


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param("", id="nothing"),
        pytest.param("sk-lmk_", id="scheme alone"),
        pytest.param("sk-lmk_" + "0" * 49, id="wrong checksum"),
        pytest.param("sk-lmk_000000000000000000000000000000000000000000003t2L", id="one character short"),
        pytest.param("sk-lmk_000000000000000000000000000000000000000000003t2LV\n", id="one character more"),
        pytest.param("sk-LMK_000000000000000000000000000000000000000000003t2LV", id="another scheme"),
        pytest.param("sk-afVELQax6KuzmuGD-x7NcA", id="a key that LiteLLM made"),
        pytest.param("sk-lmk_" + "ü" * 49, id="not ASCII"),
    ],
)
def test_noise_is_not_well_formed(noise: str):
    assert not is_well_formed(noise)


def test_secret_does_not_show_itself():
    derived = DerivedSecret(bytes(32))

    assert derived.secret.reveal() not in f"{derived.secret} {derived.secret!r} {derived!r}"


def test_nonce_is_128_random_bits_in_hexadecimal():
    nonces = {new_nonce() for _ in range(100)}

    assert len(nonces) == 100
    assert all(len(bytes.fromhex(nonce)) == 16 for nonce in nonces)

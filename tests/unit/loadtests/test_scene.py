from __future__ import annotations

import pytest
from load.scene import Tenant, tenants


def test_without_names_there_is_one_tenant_with_the_key_of_openais_clients() -> None:
    assert tenants("", "mixed", {"OPENAI_API_KEY": "sk-1"}) == (Tenant(name="default", key="sk-1", mix="mixed"),)
    assert tenants("", "none", {}) == (Tenant(name="default", key="any", mix="none"),)


def test_each_tenant_has_its_own_key_and_its_own_mix_where_it_names_one() -> None:
    keys = {"ECONOMIZER_KEY_ACME": "eco-1", "ECONOMIZER_KEY_BOLT_2": "eco-2"}
    assert tenants("acme:strict, bolt-2", "relaxed", keys) == (
        Tenant(name="acme", key="eco-1", mix="strict"),
        Tenant(name="bolt-2", key="eco-2", mix="relaxed"),
    )


def test_a_tenant_without_a_key_is_refused_and_its_variable_named() -> None:
    with pytest.raises(ValueError, match="ECONOMIZER_KEY_ACME must hold its key"):
        tenants("acme", "mixed", {})


def test_a_name_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="'acme,,bolt'"):
        tenants("acme,,bolt", "mixed", {"ECONOMIZER_KEY_ACME": "eco-1"})

"""Sites: on every model of the zoo, a rule for each gives its quantizers their bits, and no others appear."""

import pytest

import zoo
from dqconvert import prepare
from dqconvert.mixed.sites import config_with, keys_of, rules_kept, sites_of


@pytest.mark.sample(12, keep=("HeteroConv",))
@pytest.mark.parametrize("name", zoo.CASES)
def test_each_site_gets_its_bits(prepared, name):
    module, report = prepared(name)
    sites = sites_of(module)
    bits = {key: 2 + number % 5 for number, site in enumerate(sites) for key in site.keys}
    mixed, found = prepare(module, config_with(module.qconfig, bits, rules_kept(module, bits)))
    assert [entry.path for entry in found.entries] == [entry.path for entry in report.entries]
    assert {path: dict(mixed.quantizers())[path].spec.bits for path in keys_of(mixed)} == {
        path: bits[key] for path, key in keys_of(module).items()
    }

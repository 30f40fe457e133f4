"""detach over a kernel in memory: what it takes off, what it leaves, and pins without listeners."""

from __future__ import annotations

import pytest

from reuseport_tool.errors import Conflict, NotFound
from reuseport_tool.group import attach, detach, status
from reuseport_tool.kernel import netns
from reuseport_tool.models import parse_endpoint
from tests.unit.group.fake.kernel import Kernel
from tests.unit.group.fake.records import DNS, WEB
from tests.unit.group.verbs import attached, folder


def test_detach_leaves_nothing(kernel: Kernel) -> None:
    cookies = {kernel.listen(7), kernel.listen(8)}
    attached(kernel)
    (report,) = detach.detach(WEB, kernel.root).detached
    assert report.result == "detached"
    assert kernel.running == {}
    assert list(kernel.root.iterdir()) == []
    assert kernel.chosen() == cookies
    with pytest.raises(NotFound):
        detach.detach(WEB, kernel.root)
    assert attached(kernel).result == "attached", "the slots of before do not keep the listeners"


@pytest.mark.parametrize("may_iterate", [True, False])
def test_detach_where_the_kernel_does_not_tell_what_runs(kernel: Kernel, may_iterate: bool) -> None:
    kernel.listen(7)
    attached(kernel)
    kernel.tells, kernel.may_iterate = False, may_iterate
    assert detach.detach(WEB, kernel.root).detached[0].result == "detached"
    assert kernel.running == {}


def test_detach_all_and_pins_alone(kernel: Kernel) -> None:
    web, dns = kernel.listen(7), kernel.listen(7, DNS)
    attached(kernel)
    attached(kernel, DNS)
    kernel.close(web)
    results = {entry.endpoint: entry.result for entry in detach.detach_all(kernel.root).detached}
    assert results == {str(WEB): "cleaned", str(DNS): "detached"}
    assert kernel.socks.keys() == {dns}
    assert detach.detach_all(kernel.root).detached == ()


def test_a_program_that_took_our_place_is_left_and_others_are_detached_all_the_same(kernel: Kernel) -> None:
    first, second = parse_endpoint("127.0.0.1:80"), parse_endpoint("127.0.0.2:80")
    for endpoint in (first, second):
        kernel.listen(7, endpoint)
    attach.attach(parse_endpoint("80"), None, None, kernel.root)
    theirs = kernel.foreign(first)
    with pytest.raises(Conflict, match="is not this tool's") as caught:
        detach.detach(parse_endpoint("80"), kernel.root)
    assert [entry.endpoint for entry in caught.value.report.detached] == [str(second)]
    assert kernel.running == {(first, 0): theirs}


def test_detach_without_pins_takes_our_program_off(kernel: Kernel) -> None:
    kernel.listen(7)
    attached(kernel)
    for path in [*folder(kernel).rglob("*")]:
        if path.is_file():
            path.unlink()
    assert detach.detach(WEB, kernel.root).detached[0].result == "detached"
    assert kernel.running == {}
    assert attached(kernel).result == "attached"


def test_pins_of_namespaces_that_are_gone(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = kernel.listen(7)
    attached(kernel)
    home = folder(kernel).parent
    home.rename(home.parent / "4026999999_5")
    monkeypatch.setattr(netns, "keys", lambda: {netns.key()})
    assert detach.detach_gone(kernel.root).detached == (), "a listener is open: the namespace lives on"
    kernel.close(cookie)
    with status.Observer(None, kernel.root) as observer:
        (gone,) = observer.read().gone
    assert (gone.endpoint, gone.netns) == (str(WEB), "net:[4026999999]")
    (report,) = detach.detach_gone(kernel.root).detached
    assert (report.endpoint, report.result) == (str(WEB), "gone")
    assert list(kernel.root.iterdir()) == []

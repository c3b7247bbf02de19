"""What is known of a link: that its peer was met, how fast it is, and that this is of its path."""

import asyncio
import json
import socket

from distserve.migrator import peer_messages as peer
from distserve.migrator.http import Request as HttpRequest
from distserve.migrator.probe import ProbeResult
from distserve.migrator.process import handlers
from distserve.wire import auth, messages


async def test_a_peer_is_met_and_measured_before_any_transfer(harness, transport):
    source = await harness.migrator("p", transport=transport)
    reader = await harness.migrator("d", transport=transport)
    p, d = await harness.engine("p"), await harness.engine("d")
    link = await reader.target.meet(source.address)
    assert (link.status.state, link.status.transport) == ("up", transport)
    assert link.status.probe.transport == transport
    assert link.status.probe.latency_ms > 0
    assert link.status.probe.bandwidth_bytes_per_second > 0
    assert isinstance(await harness.one(p, d), messages.Fetched)
    assert reader.target.links == [link]


async def test_a_link_without_its_engine_has_no_transport_and_no_figure(
    harness, transport, monkeypatch
):
    """They were of a path that is gone: nobody would take them for today's."""
    source = await harness.migrator("p", transport=transport)
    reader = await harness.migrator("d", transport=transport)
    p, _ = await harness.engine("p"), await harness.engine("d")
    link = await reader.target.meet(source.address)
    assert link.status.probe is not None
    await p.die()
    await harness.until(lambda: link.path is None, "the word that the engine is gone")
    monkeypatch.setattr("distserve.migrator.target.MEET_SECONDS", 0.1)
    assert await reader.target.meet(source.address) is link
    assert (link.status.state, link.status.transport, link.status.probe) == ("up", "", None)
    assert link.status.error == "there is no engine at the source"
    counted = f'distserve_kv_links{{transport="{transport}"}} '
    assert f"{counted}0.0" in reader.metrics.text().decode()
    await harness.engine("p")
    await harness.until(lambda: link.path is not None, "the word that another one is there")
    assert (await reader.target.meet(source.address)).status.probe.transport == transport
    assert link.status.error == ""
    assert f"{counted}1.0" in reader.metrics.text().decode()


async def test_a_probe_of_a_path_that_is_closed_meanwhile_is_nobodys_figure(harness, monkeypatch):
    await harness.migrator("p", transport="TCP")
    reader = await harness.migrator("d", transport="TCP")
    p, _ = await harness.engine("p"), await harness.engine("d")
    link = await reader.target.meet(p.address)

    async def probe(path):
        link.drop()
        return ProbeResult(path.name, 1.0, 1.0)

    monkeypatch.setattr("distserve.migrator.link.probe", probe)
    assert await link.probe() is None
    assert link.status.probe is None


async def test_all_links_are_answered_for_in_time_and_the_rest_is_still_measured(
    harness, monkeypatch
):
    """Each takes its time, and so would all of them together, or one that stands still."""
    reader = await harness.migrator("d")
    held, measured = asyncio.Event(), []
    harness.stack.callback(held.set)

    async def probe(link):
        await held.wait()
        measured.append(link.address)

    monkeypatch.setattr(reader.target, "probe", probe)
    monkeypatch.setattr("distserve.migrator.target.PROBE_SECONDS", 0.05)
    for port in range(1, 41):
        reader.target._link(f"127.0.0.1:{port}")
    ask = handlers(reader, harness.key)["POST", "/links"]
    headers = {"authorization": auth.bearer(harness.key)}
    for _ in range(2):  # who asks again meanwhile does not begin again
        async with asyncio.timeout(10):
            answer = await ask(HttpRequest("POST", "/links", {}, headers))
        assert len(json.loads(answer.body)["links"]) == 40
        assert not measured
    held.set()
    await harness.until(lambda: len(measured) == 40, "the last probe")
    assert measured == [f"127.0.0.1:{port}" for port in range(1, 41)]


async def test_a_peer_that_cannot_be_met_says_why(harness):
    await harness.migrator("p", key=b"x" * 32)
    reader = await harness.migrator("d")
    p, _ = await harness.engine("p"), await harness.engine("d")
    link = await reader.target.meet(p.address)
    assert "another deployment" in link.status.error
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    link = await reader.target.meet(address)
    assert link.status.error.startswith("unreachable: ")
    assert link.status.probe is None


async def test_no_probe_amid_a_transfer(harness):
    """Its figure would be of what the transfer leaves, and the transfer would wait."""
    p, d = await harness.pair("TCP")
    there, here = harness.span(0, 20, 8, 7), harness.span(0, 20, 9, 3)
    await p.offer("t", there)
    d.expect("t", p.address)
    reader = harness.migrators["d"]
    link = await reader.target.meet(p.address)
    assert (link.status.state, link.status.probe) == ("up", None)
    d.fetch("t", here)
    p.ready("t", there)
    p.commit("t")
    assert isinstance(await d.ending("t"), messages.Fetched)
    await harness.until(lambda: link.status.probe is not None, "the probe after the transfer")


async def test_probe_measures_tcp_too(harness):
    await harness.migrator("p", transport="TCP")
    reader = await harness.migrator("d", transport="TCP")
    p, d = await harness.engine("p"), await harness.engine("d")
    await harness.one(p, d)
    (link,) = reader.target.links
    await harness.until(lambda: link.status.probe is not None, "the probe after the first transfer")
    assert link.status.probe.bandwidth_bytes_per_second > 0
    assert link.status.probe.latency_ms > 0


async def test_each_new_path_is_measured_after_its_first_transfer(harness):
    """The figure of the former one went with it."""
    p, d = await harness.pair("TCP")
    await harness.one(p, d)
    (link,) = harness.migrators["d"].target.links
    await harness.until(lambda: link.status.probe is not None, "the probe after the first transfer")
    await p.die()
    await harness.until(lambda: link.status.probe is None, "the word that the engine is gone")
    again = await harness.engine("p")
    assert isinstance(await harness.one(again, d, "u"), messages.Fetched)
    await harness.until(lambda: link.status.probe is not None, "the probe of the new path")


async def test_a_source_of_a_former_version_is_asked_for_less(harness, monkeypatch):
    """It says nothing of how much it sends for a probe, and to more than that it sends nothing:
    whoever waits for it has the data connection stand still, and then lose its transfers."""
    silent = peer.PeerHello(protocol=peer.PEER_PROTOCOL, instance="p", view=None)
    monkeypatch.setattr("distserve.migrator.source.PROBE_BYTES", 4 << 20)
    monkeypatch.setattr("distserve.migrator.migrator.PROBE_BYTES", silent.probe_bytes)
    await harness.migrator("p", transport="TCP")
    reader = await harness.migrator("d", transport="TCP")
    p, _ = await harness.engine("p"), await harness.engine("d")
    link = await reader.target.meet(p.address)
    assert await link.path.probe(9 << 20) > 0

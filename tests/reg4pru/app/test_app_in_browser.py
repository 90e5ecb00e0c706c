"""The app as a person meets it, in a headless Chromium, and as a program does, over MCP."""

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser


def test_upload_slider_images_table_and_curve(visitor, served):
    me = visitor()
    me.upload(served.images / "first.png")
    me.sees("keep rate 0.5")
    me.page.wait_for_selector("#files a[href$='first_mask.png']")
    before = me.picture("#stages")
    np.testing.assert_array_equal(me.download("first_mask.png"), served.expected("first", "mask", 0.5))
    np.testing.assert_array_equal(me.picture("#comparison", 1), served.expected("first", "overlay", 0.5))

    shown = me.source("#stages")
    me.set_keep_rate(0.3)
    me.sees("keep rate 0.3")
    me.sees_another("#stages", shown)  # and the files with it
    np.testing.assert_array_equal(me.download("first_mask.png"), served.expected("first", "mask", 0.3))
    np.testing.assert_array_equal(me.picture("#comparison", 1), served.expected("first", "overlay", 0.3))
    assert (me.picture("#stages") != before).any()
    assert (served.expected("first", "mask", 0.3) != served.expected("first", "mask", 0.5)).any()

    me.page.get_by_role("tab", name="Speed and agreement").click()
    me.page.locator("#measure").click()
    me.page.locator("#agreement-curve img").wait_for()
    me.sees("keep rate 0.9", "#curve-table")
    first = me.picture("#agreement-curve")
    assert first.std() > 5
    me.page.get_by_role("tab", name="See it").click()
    me.page.locator("#examples .grid-container button").first.click()
    me.sees("Dice with truth")
    me.page.get_by_role("tab", name="Speed and agreement").click()
    shown = me.source("#agreement-curve")
    me.page.locator("#measure").click()
    me.sees_another("#agreement-curve", shown)
    assert (me.picture("#agreement-curve") != first).any()
    assert "not a medical device" in me.page.locator("body").inner_text()
    assert me.outside == [], "the page loads something from elsewhere"


def test_16_bits_and_exif(visitor, served):
    for file in ("deep.png", "turned.jpg"):
        me, name = visitor(), file.split(".")[0]
        me.upload(served.images / file)
        me.page.wait_for_selector(f"#files a[href$='{name}_mask.png']")
        np.testing.assert_array_equal(me.download(f"{name}_mask.png"), served.expected(name, "mask", 0.5))
    assert me.download("turned_mask.png").shape == (128, 96)


@pytest.mark.parametrize(
    ("name", "message"), [("text.png", "is not an image"), ("huge.png", "10000 × 10000 pixels, more than the 25")]
)
def test_what_is_refused(visitor, served, tmp_path, name, message):
    if name == "text.png":
        (tmp_path / name).write_text("no image at all")
    else:
        Image.new("1", (10000, 10000)).save(tmp_path / name)
    me = visitor()
    me.upload(tmp_path / name)
    toast = me.page.locator(".toast-body").first
    toast.wait_for()
    said = toast.inner_text()
    assert message in said
    assert "/" not in said, "a path of the host"
    me.page.locator("#examples .grid-container button").first.click()  # and goes on
    me.sees("keep rate 0.5")


def test_two_visitors_at_once_get_their_own(visitor, served):
    here, there = visitor(), visitor()
    there.set_keep_rate(0.3)
    here.upload(served.images / "first.png")
    there.upload(served.images / "second.png")
    here.sees("keep rate 0.5")
    there.sees("keep rate 0.3")
    for one, name, rate in ((here, "first", 0.5), (there, "second", 0.3)):
        one.page.wait_for_selector(f"#files a[href$='{name}_mask.png']")
        np.testing.assert_array_equal(one.download(f"{name}_mask.png"), served.expected(name, "mask", rate))
        np.testing.assert_array_equal(one.picture("#comparison", 1), served.expected(name, "overlay", rate))


def test_the_tool_answers_an_mcp_client(served):
    mcp = pytest.importorskip("mcp")
    streams = pytest.importorskip("mcp.client.streamable_http")
    image = base64.b64encode((served.images / "first.png").read_bytes()).decode()

    async def ask():
        async with (
            streams.streamable_http_client(f"{served.address}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            name = next(tool.name for tool in tools if tool.name.endswith("segment"))
            good = await session.call_tool(name, {"image": image, "keep_rate": 0.3})
            bad = await session.call_tool(name, {"image": "bm8gcGljdHVyZQ==", "keep_rate": 0.3})
            return tools, good, bad

    with ThreadPoolExecutor(1) as elsewhere:  # the browser's tests may have an event loop in this thread
        tools, good, bad = elsewhere.submit(asyncio.run, ask()).result(timeout=120)
    assert len(tools) == 1
    assert "Find the vessels" in tools[0].description
    assert {"image", "keep_rate"} <= set(tools[0].inputSchema["properties"])
    answer = json.loads(good.content[0].text)
    mask = np.asarray(Image.open(BytesIO(base64.b64decode(answer["mask"]))))
    np.testing.assert_array_equal(mask, served.expected("first", "mask", 0.3))
    assert answer["milliseconds"] > 0
    assert bad.isError
    assert "not an image" in bad.content[0].text

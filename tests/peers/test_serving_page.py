"""The search page of `gtr-jax serve` in a real browser, before the real application with stores that are made up."""

import functools
import re
import shutil

import pytest

made_up = pytest.importorskip("served_stores", reason="pip install 'gtr_jax[serve]', or make install-peers")
sync_api = pytest.importorskip("playwright.sync_api", reason="make install-peers installs it")

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.peers, pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or make install-peers as root")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
DOCUMENTS, EVIL, LONG = made_up.DOCUMENTS, made_up.EVIL, made_up.LONG
expect = sync_api.expect
expect.set_options(timeout=10_000)


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as p:
    chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield chromium
    chromium.close()


@pytest.fixture
def serve():
  """Starts servers; they end with the test."""
  running = []

  def start(*stores, **how):
    running.append(made_up.Running(stores, **how))
    return running[-1]

  yield start
  for server in running:
    server.stop()


@pytest.fixture
def two(serve):
  """A server of two stores, the second of which has the first one's last four documents, others of its own, one with
  an id of the first, and BM25."""
  other = [*DOCUMENTS[:3:-1], ("geo-2", "", "Of another collection."), ("only-here", "Other", "A brook.")]
  return serve(made_up.FakeStore("first", DOCUMENTS), made_up.FakeStore("second", other, bm25=True))


@pytest.fixture
def visit(browser):
  """Opens a page; it may ask nobody but its own server, and nothing may fail in it."""
  contexts, failures = [], []

  def go(url, **how):
    contexts.append(browser.new_context(**how))
    page = contexts[-1].new_page()
    page.on("pageerror", lambda e: failures.append(str(e)))
    page.on("console", lambda said: failures.append(said.text) if "Content Security" in said.text else None)
    page.on("request", lambda request: request.url.startswith(url.partition("/?")[0]) or
            request.url.startswith("data:") or failures.append(request.url))
    page.goto(url)
    return page

  yield go
  for context in contexts:
    context.close()
  assert failures == []


def results(page, side=0):
  return page.locator("section").nth(side).locator("li")


def wait_for(page, expression):
  """Until it holds. (Playwright's own evaluates it in the page, which the page's policy forbids.)"""
  for _ in range(500):
    if page.evaluate(expression):
      return
    page.wait_for_timeout(20)
  raise AssertionError(f"10 seconds, and not yet: {expression}")


def choose_what_is_gone(page):
  """Compares with a store that the server had before it took others from disk."""
  page.get_by_label("Compare with").evaluate("select => select.add(new Option('gone', 'gone'))")
  page.get_by_label("Compare with").select_option("gone")


def query_of(page):
  """The parameters of the address."""
  return page.evaluate("Object.fromEntries(new URLSearchParams(location.search))")


def test_typing_shows_marked_results(two, visit):
  page = visit(two.url)
  expect(page.get_by_label("Store")).to_have_value("first")
  page.clock.install(time=0)
  page.clock.pause_at(1000)
  page.keyboard.type("river cafe")  # The box has the focus.
  page.clock.run_for(249)
  assert two.stores[0].seen == []
  page.clock.run_for(1)
  expect(results(page)).to_have_count(8)
  expect(page.get_by_role("status")).to_have_text("8 results")
  first = results(page).nth(0)
  expect(first.locator(".rank")).to_have_text("1")
  expect(first.locator("h3")).to_have_text("Rivers of Europe")
  expect(first.locator(".id")).to_have_text("geo-1")
  expect(first.locator(".facts")).to_contain_text("score 0.5000")
  assert first.locator("mark").all_inner_texts() == ["Rivers", "river", "rivers"]  # Not "rivulets".
  expect(results(page).nth(1).locator("h3")).to_have_text("geo-2")  # Its id, where it has no title; and once.
  expect(results(page).nth(1).locator(".id")).to_have_count(0)
  assert results(page).nth(5).locator("mark").all_inner_texts() == ["Caf\u00e9", "caf\u00e9", "river"]
  expect(page.locator("section").first.locator(".about")).to_have_text(re.compile(
      r"first-model · 8 documents · 64 × int8 · \d+(\.\d)? ms in the server, \d+ ms round trip"))
  assert [query for query, *_ in two.stores[0].seen] == ["river cafe"]  # One search, after the pause.
  assert two.stores[1].seen == []


def test_small_words_are_marked_only_where_there_are_no_others(two, visit):
  page = visit(f"{two.url}/?q=the+river")
  expect(results(page).nth(0).locator("mark")).to_have_text(["Rivers", "river", "rivers"])
  page.goto(f"{two.url}/?q=the")
  expect(results(page).nth(0).locator("mark")).to_have_text(["The", "the"])


def test_enter_searches_at_once_and_what_is_not_wanted_any_more_is_given_up(two, visit):
  page, store = visit(two.url), two.stores[0]
  expect(page.get_by_label("Store")).to_have_value("first")
  page.clock.install(time=0)
  page.clock.pause_at(1000)  # No pause ends.
  page.keyboard.type("slow")
  page.keyboard.press("Enter")
  expect(page.locator("body")).to_have_class(re.compile("busy"))
  page.get_by_role("searchbox").fill("quick")
  page.keyboard.press("Enter")
  expect(results(page)).to_have_count(8)
  page.get_by_role("searchbox").fill("nothing")
  page.keyboard.press("Enter")
  expect(page.get_by_role("status")).to_have_text("No results")
  assert [query for query, *_ in store.seen] == ["slow", "quick", "nothing"]
  assert store.given_up == ["slow"]
  expect(page.get_by_role("alert")).to_be_empty()


def test_answers_that_come_too_late_are_discarded(two, visit):
  page = visit(f"{two.url}/?q=river")
  expect(results(page)).to_have_count(8)
  page.evaluate("""() => {  // A network that gives nothing up.
    const before = fetch;
    window.fetch = (path, {signal, ...how}) => before(path, how);
  }""")
  for query in ("slow", "nothing"):
    page.get_by_role("searchbox").fill(query)
    page.keyboard.press("Enter")
  expect(page.get_by_role("status")).to_have_text("No results")
  with page.expect_response(lambda response: "slow" in (response.request.post_data or "")) as late:
    two.stores[0].held.set()
  late.value.finished()
  page.evaluate("() => new Promise(done => setTimeout(done, 50))")
  expect(page.get_by_role("status")).to_have_text("No results")
  expect(results(page)).to_have_count(0)


def test_arrows_and_keys_alone(two, visit):
  page = visit(f"{two.url}/?q=river&beside=second")
  expect(results(page, 1)).to_have_count(6)
  box, press = page.get_by_role("searchbox"), page.keyboard.press
  expect(box).to_be_focused()
  for keys, there in ((["ArrowDown"], results(page).nth(0)), (["ArrowDown", "ArrowDown"], results(page).nth(2)),
                      (["ArrowUp"], results(page).nth(1)), (["ArrowRight"], results(page, 1).nth(1)),
                      (["ArrowLeft"], results(page).nth(1)), (["ArrowUp", "ArrowUp"], box),
                      (["ArrowDown", "Escape"], box), (["ArrowDown", "/"], box),
                      (["Tab"], page.get_by_text("Search", exact=True)), (["Tab"], page.get_by_label("Store"))):
    for key in keys:
      press(key)
    expect(there).to_be_focused()
  press("/")  # A list of choices looks for what is typed.
  expect(page.get_by_label("Store")).to_be_focused()
  press("Escape")
  press("ArrowDown")
  outline = results(page).nth(0).evaluate("e => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]")
  assert outline == ["solid", "3px"]
  press("Escape")
  page.keyboard.type("a/b")  # The box was chosen whole; a slash in it is a letter.
  expect(box).to_have_value("a/b")


def test_an_error_is_told_in_the_servers_words_and_results_stay(two, visit):
  page = visit(f"{two.url}/?q=river")
  expect(results(page)).to_have_count(8)
  page.get_by_role("searchbox").fill("broken")
  alert = page.get_by_role("alert")
  expect(alert).to_contain_text("this <b>query</b> is broken; mend it")
  expect(alert).to_contain_text("What is below was found for “river”.")
  expect(results(page)).to_have_count(8)
  page.get_by_role("searchbox").fill("river again")
  expect(alert).to_be_empty()
  page.goto(f"{two.url}/?q=river&store=gone&k=1000")
  expect(alert).to_contain_text("the store 'gone' does not exist; give one of 'first', 'second'")
  page.get_by_label("Store").select_option("second")
  expect(alert).to_contain_text("top_k: 1,000, and an answer may have 50 documents")
  page.get_by_label("Results").select_option("5")
  expect(results(page)).to_have_count(5)
  expect(alert).to_be_empty()


def test_one_side_fails_and_the_other_is_shown(two, visit):
  page = visit(f"{two.url}/?q=river&beside=second&k=5")
  expect(results(page, 1)).to_have_count(5)
  choose_what_is_gone(page)
  page.get_by_label("Results").select_option("10")
  expect(page.get_by_role("alert")).to_contain_text("the store 'gone' does not exist")
  expect(results(page)).to_have_count(8)
  expect(results(page, 1)).to_have_count(5)  # What it had found before.


def test_comparison(two, visit):
  page = visit(f"{two.url}/?q=river", viewport={"width": 1280, "height": 900})
  expect(page.locator(".other")).to_have_count(0)
  page.get_by_label("Compare with").select_option("second")
  expect(page.get_by_role("status")).to_have_text("8 results, and 6 beside; 4 found by both")
  assert query_of(page) == {"q": "river", "store": "first", "beside": "second"}
  left, right = (page.locator("section").nth(i).bounding_box() for i in (0, 1))
  assert left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
  expect(page.locator("li.both")).to_have_count(8)
  expect(results(page).nth(1).locator(".other")).to_have_count(0)  # The other's geo-2 is another document.
  link = results(page).nth(4).locator(".other")
  expect(link).to_have_text("#4 beside")
  link.click()
  expect(results(page, 1).nth(3)).to_be_focused()
  expect(results(page, 1).nth(3).locator(".other")).to_have_text("#5 in the first")
  page.set_viewport_size({"width": 390, "height": 844})
  left, right = (page.locator("section").nth(i).bounding_box() for i in (0, 1))
  assert left["x"] == right["x"] and left["y"] + left["height"] <= right["y"]
  page.get_by_label("Compare with").select_option("")
  expect(page.locator("li.both, .other")).to_have_count(0)
  expect(page.locator("section").nth(1)).to_be_hidden()


def test_bm25_is_offered_where_the_store_has_it(two, visit):
  page = visit(f"{two.url}/?q=river")
  expect(results(page)).to_have_count(8)
  ticks = page.get_by_label("with BM25")
  expect(ticks.nth(0)).to_be_hidden()
  page.get_by_label("Store").select_option("second")
  expect(ticks.nth(0)).to_be_visible()
  ticks.nth(0).check()
  expect(results(page).nth(0).locator("h3")).to_have_text("Other")
  assert two.stores[1].seen[-1] == ("river", 10, "", True)
  assert query_of(page)["hybrid"] == "1"
  page.get_by_label("Compare with").select_option("second")  # Beside itself it is searched in the other way.
  expect(page.get_by_role("status")).to_have_text("6 results, and 6 beside; 6 found by both")
  assert sorted(hybrid for *_, hybrid in two.stores[1].seen[-2:]) == [False, True]
  page.get_by_label("Store").select_option("first")
  expect(ticks.nth(0)).to_be_hidden()
  expect(results(page)).to_have_count(8)
  assert two.stores[0].seen[-1] == ("river", 10, "", False)


def test_long_texts_are_clipped_and_shown_when_asked_for(two, visit):
  page = visit(f"{two.url}/?q=sea")
  long = results(page).nth(4)
  assert len(long.inner_text()) < 700
  expect(long.locator("mark")).to_have_count(0)
  long.get_by_role("button", name="Show all 10,000 words").click()
  expect(long.locator(".text")).to_have_text(LONG)
  expect(long.locator("mark")).to_have_text(["sea"])
  less = long.get_by_role("button", name="Show less")
  expect(less).to_have_attribute("aria-expanded", "true")
  less.click()
  assert len(long.inner_text()) < 700
  long.focus()
  page.keyboard.press("Enter")
  expect(long.locator(".text")).to_have_text(LONG)


def test_what_documents_hold_stays_text(two, visit):
  page = visit(f"{two.url}/?q={'river'}&beside=second")
  expect(results(page).nth(2).locator("h3")).to_have_text(EVIL)
  expect(results(page).nth(2).locator(".text")).to_have_text(f"Text that a river brought: {EVIL}")
  expect(results(page).nth(3).locator("h3")).to_have_text(f"<b>{EVIL}</b>")
  page.get_by_role("searchbox").fill(EVIL)
  page.keyboard.press("Enter")
  wait_for(page, "sides[0].query.includes('onerror')")
  page.goto(f"{two.url}/?q=broken&store=<img src=x onerror='window.hurt=1'>")
  expect(page.get_by_role("alert")).to_contain_text("onerror")
  assert page.locator("main img, main script, main b, #form img, #problem img").count() == 0
  assert page.evaluate("window.hurt") is None


def test_a_key_is_asked_for_and_kept_in_the_tab(serve, visit):
  server = serve(made_up.FakeStore("first", DOCUMENTS), keys=["s\u00e9cret".encode()])
  page = visit(f"{server.url}/?q=river")
  field = page.get_by_label("API key")
  expect(page.get_by_role("alert")).to_contain_text("give an API key of this server")
  expect(field).to_be_focused()
  page.keyboard.type("wrong \u20ac")
  page.keyboard.press("Enter")
  expect(page.get_by_role("alert")).to_contain_text("That key is none of this server's.")
  assert server.stores[0].seen == []
  page.keyboard.type("s\u00e9cret")
  page.keyboard.press("Enter")
  expect(results(page)).to_have_count(8)
  expect(page.get_by_role("alert")).to_be_empty()
  kept = page.evaluate("[sessionStorage.getItem('key'), localStorage.length, document.cookie]")
  assert kept == ["s\u00e9cret", 0, ""]
  page.reload()
  expect(results(page)).to_have_count(8)


def test_a_server_that_starts_is_waited_for(serve, visit):
  server = serve(made_up.FakeStore("first", DOCUMENTS), ready=False)
  page = visit(f"{server.url}/?q=river")
  expect(page.get_by_role("alert")).to_contain_text("the server is starting: its programs are being compiled")
  expect(page.get_by_role("alert")).to_contain_text("tries again every 5 seconds")
  server.service.served = server.served
  expect(results(page)).to_have_count(8)  # Nobody has pressed anything.
  expect(page.get_by_role("alert")).to_be_empty()


def test_a_server_that_is_gone_is_told_of_and_found_again(two, visit):
  page = visit(f"{two.url}/?q=river")
  expect(results(page)).to_have_count(8)
  two.stop()
  page.get_by_role("searchbox").fill("river again")
  expect(page.get_by_role("alert")).to_contain_text(f"No server can be reached at {two.url}.")
  expect(results(page)).to_have_count(8)
  two.start()
  page.get_by_role("button", name="Try again").click()
  expect(page.get_by_role("alert")).to_be_empty()
  assert two.stores[0].seen[-1][0] == "river again"


def test_nothing_found_and_the_prefix_of_ids(two, visit):
  page = visit(f"{two.url}/?q=nothing")
  expect(page.get_by_role("status")).to_have_text("No results")
  page.get_by_text("More").click()
  page.get_by_label("Only documents whose id begins with").fill("law-")
  wait_for(page, "location.search.includes('prefix=law-')")
  expect(page.get_by_role("status")).to_have_text("No results: perhaps no id begins with “law-”")
  page.get_by_role("searchbox").fill("river")
  expect(results(page)).to_have_count(3)


def test_a_server_without_stores(serve, visit):
  page = visit(serve().url)
  expect(page.locator("main")).to_contain_text("gtr-jax serve --model MODEL --embeddings")
  expect(page.locator("input:visible, select:visible, button:visible")).to_have_count(0)
  page.keyboard.press("/")  # There is no box.


def test_the_address_has_all_and_back_goes_back(two, visit):
  page = visit(f"{two.url}/?q=river&store=second&hybrid=1&beside=first&k=5&prefix=geo")
  expect(page.get_by_label("Store")).to_have_value("second")
  expect(page.get_by_label("Compare with")).to_have_value("first")
  expect(page.get_by_label("Only documents")).to_have_value("geo")
  expect(page.get_by_role("status")).to_have_text("2 results, and 4 beside; 1 found by both")
  assert two.stores[1].seen == [("river", 5, "geo", True)]
  assert two.stores[0].seen == [("river", 5, "geo", False)]
  page.goto(two.url)
  box = page.get_by_role("searchbox")
  lengths = page.evaluate("history.length")
  for typed in ("ri", "riv", "river"):  # One entry for what is typed in one go.
    box.fill(typed)
    wait_for(page, f"sides[0].query === '{typed}'")
  page.keyboard.press("Enter")
  box.fill("sea")
  wait_for(page, "sides[0].query === 'sea'")
  page.get_by_label("Results").select_option("5")
  expect(results(page)).to_have_count(5)
  assert page.evaluate("history.length") == lengths + 3
  page.go_back()
  expect(results(page)).to_have_count(8)
  expect(page.get_by_label("Results")).to_have_value("10")
  page.go_back()
  expect(box).to_have_value("river")
  wait_for(page, "sides[0].query === 'river'")
  assert page.title() == "river – gtr_jax search"
  page.go_back()
  expect(box).to_have_value("")
  expect(results(page)).to_have_count(0)
  page.go_forward()
  expect(box).to_have_value("river")
  expect(results(page)).to_have_count(8)


def _luminance(color):
  red, green, blue = (float(c) / 255 for c in re.findall(r"[\d.]+", color)[:3])
  linear = [c / 12.92 if c <= .04045 else ((c + .055) / 1.055)**2.4 for c in (red, green, blue)]
  return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme, two, visit):
  """Of WCAG 2.2 (1.4.3), AA: 4.5 to 1 for texts."""
  page = visit(f"{two.url}/?q=river&beside=second", color_scheme=scheme)
  expect(results(page, 1)).to_have_count(6)
  choose_what_is_gone(page)
  expect(page.get_by_role("alert")).to_contain_text("gone")
  colors = page.evaluate("""() => {
    const ground = e => { const color = getComputedStyle(e).backgroundColor;
      return color === "rgba(0, 0, 0, 0)" && e.parentElement ? ground(e.parentElement) : color; };
    return ["body", "h1", ".about", ".id", ".text", "mark", ".rank", ".facts", "button.main", "button.plain", "select",
            ".field", "#problem b", "#problem p:last-child", "#status", "footer a", "#q::placeholder"].map(selector => {
      const [of, part] = selector.split("::"), e = document.querySelector(of);
      return [selector, getComputedStyle(e, part && `::${part}`).color, ground(e)];
    });
  }""")
  contrasts = {}
  for selector, ink, paper in colors:
    dim, bright = sorted(map(_luminance, (ink, paper)))
    contrasts[selector] = (bright + .05) / (dim + .05)
  assert {selector: ratio for selector, ratio in contrasts.items() if ratio < 4.5} == {}
  of_ground = _luminance(next(paper for selector, _, paper in colors if selector == "body"))
  assert of_ground > .8 if scheme == "light" else of_ground < .05


@pytest.mark.parametrize("width", [320, 360, 390, 1024, 1920])
def test_nothing_is_wider_than_the_screen(width, two, visit):
  two.stores[1].name = "a_very_long_name_of_a_store_" * 3
  two.served.stores = {store.name: store for store in two.stores}
  page = visit(f"{two.url}/?q=river&beside={two.stores[1].name}&beside_hybrid=1&prefix=x", viewport={
      "width": width, "height": 800})
  expect(page.get_by_role("status")).to_contain_text("No results")
  page.get_by_label("Only documents").fill("")
  expect(results(page, 1)).to_have_count(6)
  page.evaluate("() => { ask = async () => { throw new Refused('long'.repeat(200), 401); }; }")
  page.get_by_role("searchbox").fill("rivers")
  expect(page.get_by_label("API key")).to_be_visible()
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  wide = page.locator("header *, main *, footer *").evaluate_all(
      "(all, width) => all.filter(e => e.getBoundingClientRect().right > width).map(e => e.outerHTML)", width)
  assert wide == []


def test_motion_only_where_it_is_wanted(two, visit):
  page = visit(f"{two.url}/?q=slow", reduced_motion="reduce")
  style = functools.partial(page.locator("#wait").evaluate, "e => getComputedStyle(e).animationName")
  expect(page.locator("body")).to_have_class(re.compile("busy"))
  assert style() == "none"
  page.emulate_media(reduced_motion="no-preference")
  assert style() == "pass"
  two.stores[0].held.set()
  expect(page.locator("body")).not_to_have_class(re.compile("busy"))


def test_without_scripts_it_says_so(two, browser):
  context = browser.new_context(java_script_enabled=False)
  page = context.new_page()
  page.goto(two.url)
  expect(page.locator("noscript p")).to_be_visible()
  expect(page.locator("noscript p")).to_contain_text("POST /search")
  expect(page.locator("form")).to_be_hidden()
  context.close()

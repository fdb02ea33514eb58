"""A run in which one of these tests is skipped has failed: it proves nothing about T5X."""


def pytest_sessionfinish(session):
  reporter = session.config.pluginmanager.get_plugin("terminalreporter")
  if reporter is not None and any("t5x/" in report.nodeid for report in reporter.stats.get("skipped", [])):
    reporter.write_line("\nskipped, so this run has failed: install T5X as docs/t5x.md says")
    session.exitstatus = 1

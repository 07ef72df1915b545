# make demo   the engine in a virtual environment of its own (no torch), the example pictures translated
# make test   everything that the tests need, and the tests
# make bench  the table of rivals and its plot, the pytest-benchmark suite
PYTHON ?= python3
DEMO := .venv/demo
TEST := .venv/test
SOURCES := $(shell find csrc pix2pix_fast train setup.py CMakeLists.txt pyproject.toml -type f -not -name '*.so' -not -name '*.pyc')

.PHONY: demo test lint bench clean

demo: $(DEMO)/installed
	$(DEMO)/bin/pix2pix-fast demo -o out/demo.png --overwrite

test: $(TEST)/installed  # pytest by its own name: with `python -m` the source folder would hide the installed package
	$(TEST)/bin/pytest -q

lint: $(TEST)/installed
	$(TEST)/bin/python -m ruff check .
	$(TEST)/bin/python -m mypy

bench: $(TEST)/peers
	$(TEST)/bin/python bench/rivals.py --plot docs/plots/latency.png
	$(TEST)/bin/pytest bench/suite.py --benchmark-autosave --benchmark-columns=median,iqr,rounds -q

# Built from the sources as they stand; a change of any of them installs again.
$(DEMO)/installed: $(SOURCES)
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet .
	touch $@

$(TEST)/installed: $(SOURCES)
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install --quiet '.[test]'
	$(TEST)/bin/python -m pip install --quiet '.[tensorrt]' || echo "no tensorrt_rtx: its tests will skip"
	for version in 12_bindings==10.15 12_bindings==10.16 13_bindings==11.4; do \
		$(TEST)/bin/python -m pip install --quiet --no-deps --upgrade --target .venv/tensorrt-$${version##*=} \
			"tensorrt_cu$$version.*" || echo "no bindings of tensorrt $$version: their test will skip"; done
	touch $@

$(TEST)/peers: $(TEST)/installed
	$(TEST)/bin/python -m pip install --quiet '.[peers]' torch==2.13.0
	touch $@

clean:
	rm -rf build out .venv *.egg-info

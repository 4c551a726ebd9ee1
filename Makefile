# Every target is a line or two; the work is done in tools/ and in the packages themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help docs docs-serve setup demo demo-remote up test test-quick test-full test-costs lint types imports audit faults faults-remote faults-callbacks soak screenshots bench-pipeline bench-decoding bench-ledger bench-latency bench-scale bench-fleet bench-fair bench-recovery bench-resume bench-full bench-gpu bench-remote bench-train bench-train-quick bench-quality bench-paint bench-scroll bench-web clean

# Tests start hundreds of processes, so compiled modules must be kept, whatever the shell has set.
unexport PYTHONDONTWRITEBYTECODE

BIN   := .venv/bin
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# A third of the tests' time is waiting for servers and leases: three test processes keep two cores busy.
TESTERS ?= $(shell expr $(CORES) \* 3 / 2)
JOBS  ?= 1
WORD  ?= first
SOAK_JOBS  ?= 5000
SOAK_BASES ?= 1

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup:  ## create .venv with all dependencies; a second run does nothing
	@tools/setup.sh demo

demo: setup  ## train a LoRA on ten pictures with the real chain; JOBS=4 trains four at once
	@$(BIN)/python -m demo --jobs $(JOBS)

demo-remote: setup  ## the same on a rented pod; RunPod and its GPU are faked on this machine
	@$(BIN)/python -m demo --remote

up: setup  ## run the whole stack until Ctrl-C: Redis, workers, beat, Flower, HTTP API
	@$(BIN)/python -m cli.stack

test:  ## check style, types and imports, then run all tests; IMPRINT_TEST_SEED=… repeats a sample
	@tools/setup.sh test && tools/swift.sh
	@$(MAKE) --no-print-directory --jobs --output-sync lint types imports
	@$(BIN)/pytest -n $(TESTERS) --dist worksteal

test-quick: setup  ## tests without servers or trainings, in under a minute
	@$(BIN)/pytest -q -n $(CORES) --dist worksteal tests/unit tests/generation tests/hostile --ignore tests/hostile/test_messages.py

test-full:  ## like make test, with every case of the large matrices instead of a sample
	@IMPRINT_TEST_FULL=1 $(MAKE) --no-print-directory test

test-costs: setup  ## run all cases and record what tests cost in tests/costs.json, which make test samples by; needs root
	@IMPRINT_TEST_FULL=1 $(BIN)/pytest -n $(TESTERS) --dist worksteal -p tests.costs

lint: setup  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup  ## mypy, strict
	@$(BIN)/mypy

imports: setup  ## import-linter: which package may import which
	@$(BIN)/lint-imports

audit: setup  ## write build/sbom.cdx.json, and look up known vulnerabilities of all pins on the network
	@$(BIN)/python tools/audit.py

faults: setup  ## 210 jobs with random faults, then a mix of attacks, about 20 minutes; SEED=… repeats a run
	@$(BIN)/python -m tests.faults.run
	@$(BIN)/python -m tests.attacks

faults-remote: setup  ## a hundred remote trainings at once on failing servers, and all kill tests
	@REMOTE_JOBS=100 $(BIN)/pytest -n 0 tests/faults/test_remote_storm.py tests/faults/test_remote_kills.py

faults-callbacks: setup  ## two hundred trainings with callbacks while processes are killed, on both brokers
	@IMPRINT_TEST_FULL=1 $(BIN)/pytest -n 0 tests/faults/test_callback_storm.py

soak: setup  ## 5,000 jobs through the whole stack, and what grows with them, as JSON; SOAK_JOBS=300 for less
	@$(BIN)/python -m benchmarks.soak --jobs $(SOAK_JOBS) --bases $(SOAK_BASES)

screenshots: setup  ## every page, three sizes, two themes, with an index; PAGE=samples for one, LANGUAGE=de
	@$(BIN)/python -m tools.screenshots --only "$(PAGE)" --language "$(or $(LANGUAGE),en)"

bench-paint: setup  ## first paint of the pages on a slow connection, in Chromium
	@$(BIN)/python -m benchmarks.first_paint

bench-scroll: setup  ## scrolling a subject with 500 pictures: CPU time of the page's main thread, as JSON
	@$(BIN)/python -m benchmarks.scrolling

bench-web: setup  ## HTTP API with 200 event streams and 50 requests a second, as JSON
	@$(BIN)/python -m benchmarks.web

bench-pipeline: setup  ## overhead of the chain apart from training, as JSON
	@$(BIN)/python -m benchmarks.pipeline

bench-decoding: setup  ## cost of decoding pictures in a child process, as JSON
	@$(BIN)/python -m benchmarks.decoding

bench-ledger: setup  ## ledger entries per second on PostgreSQL and SQLite, as JSON
	@$(BIN)/python -m benchmarks.ledger

bench-latency: setup  ## what a job costs beside its training, and latencies, as JSON
	@$(BIN)/python -m benchmarks.latency

bench-scale: setup  ## 20,000 waiting jobs and 200 simulated workers on PostgreSQL, as JSON
	@$(BIN)/python -m benchmarks.scale

bench-fleet: setup  ## a simulation: what saturates first up to 1,000 GPUs, as JSON
	@$(BIN)/python -m benchmarks.fleet

bench-fair: setup  ## waits of owners with few jobs beside one with 500, with kills, as JSON
	@$(BIN)/python -m benchmarks.fairness

bench-recovery: setup  ## time from kill -9 of a training worker to the next step of its job, as JSON
	@$(BIN)/python -m benchmarks.recovery

bench-train: setup  ## CPU time and memory of a training step, compared with diffusers and peft, as JSON
	@$(BIN)/python -m benchmarks.training

bench-quality: setup  ## quality of LoRAs of five subjects, compared with a plain loop, as JSON
	@$(BIN)/python -m benchmarks.quality

bench-train-quick: setup  ## the same on the tiny model only, in under a minute
	@$(BIN)/python -m benchmarks.training --quick

bench-resume: setup  ## difference after kill -9 and resume, compared with a plain loop, as JSON
	@$(BIN)/python -m benchmarks.resume

bench-full: setup  ## memory and time of the whole chain on a base of sd15's size, as JSON; PICTURES=folder
	@$(BIN)/python -m benchmarks.full_size

bench-gpu: setup  ## checks and rates on a CUDA machine, 9.5 minutes each: WORD=first, second or third
	@$(BIN)/python -m benchmarks.gpu $(WORD)

bench-remote: setup  ## duration of a poll of 500 remote trainings, as JSON
	@$(BIN)/python -m benchmarks.remote

docs: setup  ## build the docs site in build/site; warnings are errors
	@$(BIN)/python -m tools.site build && echo "build/site/index.html"

docs-serve: setup  ## build the docs site and serve it on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/python -m tools.site serve

clean:  ## remove .venv and caches; .imprint/ (your jobs and LoRAs) stays
	@tools/clean.sh

# Every target is a line or two; the work is done in tools/ and in the packages themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help docs docs-serve setup demo demo-remote up test test-quick test-full lint types imports faults faults-remote bench-pipeline bench-decoding bench-ledger bench-recovery bench-resume bench-full bench-gpu bench-remote bench-train bench-train-quick bench-quality bench-web clean

# Tests start hundreds of processes: each module is compiled once, whatever the shell has set.
unexport PYTHONDONTWRITEBYTECODE

BIN   := .venv/bin
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
# A third of the tests' time is waiting for servers and leases: three test processes keep two cores busy.
TESTERS ?= $(shell expr $(CORES) \* 3 / 2)
JOBS  ?= 1
WORD  ?= first

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup:  ## .venv with everything that Imprint needs; a second run does nothing
	@tools/setup.sh demo

demo: setup  ## ten pictures become a LoRA through the real chain, live; JOBS=4 sends four at once
	@$(BIN)/python -m demo --jobs $(JOBS)

demo-remote: setup  ## the same on a rented pod: a stand-in for RunPod and its GPU, on this machine
	@$(BIN)/python -m demo --remote

up: setup  ## the whole stack in the foreground: Redis, workers, beat, Flower, HTTP API; Ctrl-C ends it
	@$(BIN)/python -m cli.stack

test:  ## everything that is checked: style, types, imports, then all tests; IMPRINT_TEST_SEED=… repeats a sample
	@tools/setup.sh test && tools/swift.sh
	@$(MAKE) --no-print-directory --jobs --output-sync lint types imports
	@$(BIN)/pytest -n $(TESTERS) --dist worksteal

test-quick: setup  ## what needs neither servers nor a training, in under a minute
	@$(BIN)/pytest -q -n $(CORES) --dist worksteal tests/unit tests/generation tests/hostile --ignore tests/hostile/test_messages.py

test-full:  ## as `make test`, with every case of the matrices that it draws samples of
	@IMPRINT_TEST_FULL=1 $(MAKE) --no-print-directory test

lint: setup  ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup  ## mypy, strict
	@$(BIN)/mypy

imports: setup  ## import-linter: who may import whom
	@$(BIN)/lint-imports

faults: setup  ## a seeded fault run of 210 jobs, about a quarter of an hour; SEED=… repeats one
	@$(BIN)/python -m tests.faults.run

faults-remote: setup  ## a hundred remote trainings at once over servers that fail in every way, and every kill
	@REMOTE_JOBS=100 $(BIN)/pytest -n 0 tests/faults/test_remote_storm.py tests/faults/test_remote_kills.py

bench-web: setup  ## the HTTP API under 200 event streams and 50 requests a second, as JSON
	@$(BIN)/python -m benchmarks.web

bench-pipeline: setup  ## overhead of the chain outside training, as JSON
	@$(BIN)/python -m benchmarks.pipeline

bench-decoding: setup  ## what a picture's decoding in a child costs, as JSON
	@$(BIN)/python -m benchmarks.decoding

bench-ledger: setup  ## movements of credits per second on PostgreSQL and SQLite, as JSON
	@$(BIN)/python -m benchmarks.ledger

bench-recovery: setup  ## from a training worker's kill -9 to the next step of its job, as JSON
	@$(BIN)/python -m benchmarks.recovery

bench-train: setup  ## CPU seconds and memory of a training step beside plain diffusers and peft, as JSON
	@$(BIN)/python -m benchmarks.training

bench-quality: setup  ## LoRAs of five unseen subjects, ours and a plain loop's, in four figures, as JSON
	@$(BIN)/python -m benchmarks.quality

bench-train-quick: setup  ## the same on the tiny model alone, in under a minute
	@$(BIN)/python -m benchmarks.training --quick

bench-resume: setup  ## error after kill -9 and resume, ours and a plain loop's, as JSON
	@$(BIN)/python -m benchmarks.resume

bench-full: setup  ## ten photographs (PICTURES=folder) on a base of sd15's size, the whole chain: memory, time, as JSON
	@$(BIN)/python -m benchmarks.full_size

bench-gpu: setup  ## checks and rates on a CUDA machine, 9.5 minutes a word: WORD=first, second or third
	@$(BIN)/python -m benchmarks.gpu $(WORD)

bench-remote: setup  ## how long a poll of 500 remote trainings takes, as JSON
	@$(BIN)/python -m benchmarks.remote

docs: setup  ## the docs site in build/site, every warning an error
	@$(BIN)/python -m tools.site build && echo "build/site/index.html"

docs-serve: setup  ## the same, shown on http://127.0.0.1:8000 until Ctrl-C
	@$(BIN)/python -m tools.site serve

clean:  ## remove .venv and caches; .imprint/ (your jobs and LoRAs) stays
	@tools/clean.sh

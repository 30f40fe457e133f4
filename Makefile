# Every target does the set-up that it needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# BCC must be the distribution's, so the venv sees the system's packages.
PACKAGES := python3-bpfcc python3-venv nginx-light haproxy
# For the tests: a Go server, a systemd in a container, a second reader of the kernel's types, and promtool.
TEST_PACKAGES := golang-go systemd-container bpftool prometheus

# For `make dns`.
DNS_PACKAGES := dnsperf unbound knot dnsdist

# In a VM or in CI a kernel test that cannot run is an error; "skip" lets it be skipped with its reason.
export REUSEPORT_TOOL_KERNEL_TESTS ?= require

# The tests mostly wait. Those that measure compare ratios of interleaved arms, which neighbours slow alike.
PROCESSES ?= 4
# What they cover now; to be raised, never lowered.
COVERED := 75

# $(1): packages. Installs those that are missing, as root, or says which; elsewhere than on Debian it only names them.
define install_packages
	@if ! command -v dpkg-query >/dev/null; then \
		echo "Not Debian: this needs what Debian calls $(1)." >&2; \
		exit 0; \
	fi; \
	missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then echo "As root: apt-get install" $$missing >&2; exit 1; fi; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$missing >/dev/null; \
	fi
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: packages $(READY) ## Install the Debian packages and the venv (.venv/bin/reuseport-tool)
	@# Where PYTHONDONTWRITEBYTECODE is set, each run of the tool would compile all that it imports.
	$(PY) -m compileall -q reuseport_tool tests

.PHONY: packages
packages:
	$(call install_packages,$(PACKAGES))

# Exact versions, also of what builds the package.
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt $(VENV)/bin/pip install --quiet --disable-pip-version-check

$(READY): pyproject.toml constraints.txt | packages
	test -x $(PY) || $(PYTHON) -m venv --system-site-packages $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

.PHONY: demo
demo: setup ## A server under load: a plain restart, then reuseport-tool reload, side by side
	$(PY) -m tests.servers.demo

.PHONY: test
test: setup lint ## Every test: unit, kernel, servers, packaging, vm (as root)
	$(call install_packages,vagrant $(TEST_PACKAGES) $(DEB_PACKAGES))
	$(VENV)/bin/pytest -n $(PROCESSES) --dist worksteal --durations=10

.PHONY: unit
unit: setup ## Unit tests: without root, in seconds
	$(VENV)/bin/pytest -q -n 2 tests/unit

.PHONY: kernel
kernel: setup ## Kernel tests (as root). FOLDER=reload: those of one job
	$(call install_packages,bpftool)
	$(VENV)/bin/pytest -n $(PROCESSES) --dist worksteal tests/kernel/$(FOLDER)

.PHONY: servers
servers: setup ## Real servers under load: nginx, haproxy, Go, gRPC, systemd (as root)
	$(call install_packages,$(TEST_PACKAGES))
	$(VENV)/bin/pytest -n $(PROCESSES) --dist worksteal tests/servers tests/soak

.PHONY: coverage
coverage: setup ## What the unit tests alone cover of reuseport_tool/
	$(VENV)/bin/pytest -q --cov=reuseport_tool --cov-report=term:skip-covered --cov-fail-under=$(COVERED) tests/unit

.PHONY: test-trixie
test-trixie: ## The suite in a debootstrap'ed Debian 13 (as root, minutes). TARGETS='unit kernel': only these
	$(call install_packages,debootstrap debian-archive-keyring)
	tests/on_debian trixie $(or $(TARGETS),test)

# Installing caddy and pgbouncer starts them as services where systemd runs: use a machine that serves nobody.
RECIPE_PACKAGES := apache2-bin media-types uwsgi-core uwsgi-plugin-python3 caddy pgbouncer \
	$(if $(shell command -v npm),,npm)
.PHONY: dns
dns: setup ## unbound, Knot DNS and dnsdist under load, restarted and reloaded (installs them; ten minutes, as root)
	$(call install_packages,$(DNS_PACKAGES))
	$(PY) -m tests.servers.dns

.PHONY: quic
quic: setup ## aioquic, and Debian 13's nginx and haproxy, restarted and reloaded under QUIC connections (a quarter of an hour, as root)
	$(call install_packages,debootstrap debian-archive-keyring)
	$(PY) -m tests.servers.quic

.PHONY: recipes
recipes: setup ## The recipes of servers that no other test runs, with and without the tool (installs them; ten minutes)
	$(call install_packages,$(RECIPE_PACKAGES))
	$(PIP_INSTALL) --editable '.[dev,recipes]'
	npm install --silent --no-audit --no-fund --prefix $(VENV)/node node@24
	$(VENV)/bin/pytest -q tests/recipes

.PHONY: soak
soak: setup ## 150 reloads back to back under load, and 150 plain restarts (about seven minutes, as root)
	$(PY) -m tests.soak.soak

.PHONY: docs
docs: setup ## Write docs/json.md and docs/schema.json from the models
	$(PY) -m docs.generate

.PHONY: lint
lint: setup ## ruff, mypy and clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h')
	$(VENV)/bin/mypy

# The Debian package, from the files that git knows, for Debian 12 and 13: it has no compiled part.
DEB_PACKAGES := build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-hatchling \
	python3-click python3-rich python3-pyroute2 python3-scapy click-man dpkg-dev fakeroot man-db
DEB := build/deb
DEB_SOURCE := $(DEB)/reuseport-tool

.PHONY: deb
deb: ## Build build/deb/reuseport-tool_VERSION_all.deb
	$(call install_packages,$(DEB_PACKAGES))
	rm -rf $(DEB) && mkdir -p $(DEB_SOURCE)
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(DEB_SOURCE)
	cp -r $(DEB_SOURCE)/packaging/debian $(DEB_SOURCE)/debian
	cd $(DEB_SOURCE) && PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage --build=binary --no-sign >../build.log 2>&1 || { tail -40 ../build.log; exit 1; }
	@ls $(DEB)/*.deb

.PHONY: test-packages
test-packages: setup deb ## The .deb on fresh roots of Debian 12 and 13, with their nginx under load (as root, minutes)
	$(call install_packages,debootstrap debian-archive-keyring systemd-container)
	$(VENV)/bin/pytest -q tests/packaging/debian_package.py

MKDOCS := build/mkdocs/bin/mkdocs

$(MKDOCS): constraints.txt
	$(PYTHON) -m venv build/mkdocs
	PIP_CONSTRAINT=constraints.txt build/mkdocs/bin/pip install --quiet --disable-pip-version-check mkdocs-material
	touch $@

.PHONY: site
site: packages $(MKDOCS) ## The documentation as a site, build/site/index.html; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(MKDOCS) build --quiet --strict

ANSIBLE := build/ansible/bin/ansible

$(ANSIBLE): constraints.txt
	$(PYTHON) -m venv build/ansible
	PIP_CONSTRAINT=constraints.txt build/ansible/bin/pip install --quiet --disable-pip-version-check ansible-core
	touch $@

.PHONY: test-ansible
test-ansible: setup $(ANSIBLE) ## The collection: ansible-test sanity, and three hosts with servers under load (as root)
	$(VENV)/bin/pytest -q tests/fleet/ansible_collection.py

# Kernel VMs: vagrant/README.md. Debian's package of each name, installed only where a target needs it.
KERNEL ?= debian-6.1
CMD ?= uname -a
VM_PACKAGES := qemu-system-x86 busybox-static kmod iproute2 debian-archive-keyring
VM_BUILD_PACKAGES := build-essential flex bison bc dwarves libelf-dev zlib1g-dev patch xz-utils
VM_READY := $(VENV)/.vm-ready
VM := $(PY) -m vagrant.qemu

$(VM_READY): pyproject.toml $(READY)
	$(PIP_INSTALL) --editable '.[dev,vm]'
	touch $@

.PHONY: vm-setup
vm-setup: setup $(VM_READY)
	$(call install_packages,$(VM_PACKAGES))

.PHONY: vm-build-setup
vm-build-setup: vm-setup
	$(call install_packages,$(VM_BUILD_PACKAGES))

.PHONY: vm-kernel-setup
# Only the patched kernel is built from source.
vm-kernel-setup: $(if $(filter autolowat,$(KERNEL)),vm-build-setup,vm-setup)

.PHONY: vm-test
vm-test: vm-kernel-setup ## Kernel tests in a VM: KERNEL=debian-5.10, debian-6.1, debian-6.12, debian-7, autolowat
	@$(VM) test '$(KERNEL)'

.PHONY: vm-run
vm-run: vm-kernel-setup ## One command in a VM as root: KERNEL=… CMD='…'
	@$(VM) run '$(KERNEL)' '$(subst ','\'',$(CMD))'

.PHONY: vm-shell
vm-shell: vm-kernel-setup ## A prompt in a VM: KERNEL=…
	@$(VM) shell '$(KERNEL)'

.PHONY: vm-kernel
vm-kernel: vm-build-setup ## Build the kernel with AutoLOWAT's hook (about ten minutes the first time)
	@$(VM) kernel autolowat

.PHONY: vm-matrix
vm-matrix: vm-build-setup ## Test every kernel, two at a time, and write docs/kernels.md. KERNELS='…': test only these, write nothing
	@$(VM) matrix $(KERNELS)

# The box is Debian packages and nothing else; the ones that set-up would install are in it already.
VAGRANT_PACKAGES := vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients qemu-system-x86 dnsmasq-base iptables \
	slirp4netns rsync openssh-client
BOX_PACKAGES := debootstrap debian-archive-keyring grub-pc-bin grub-common fdisk e2fsprogs qemu-utils
BOX := $(or $(REUSEPORT_TOOL_CACHE),$(HOME)/.cache/reuseport-tool)/vagrant/debian.box
# Emulation takes whole cores for minutes.
QUIETLY := nice -n 19 ionice -c3

$(BOX): vagrant/box/build
	$(call install_packages,vagrant $(BOX_PACKAGES))
	mkdir -p $(@D)
	$(QUIETLY) vagrant/box/build $@ $(PACKAGES)

.PHONY: vagrant-box
vagrant-box: $(BOX) ## A Vagrant box made of Debian packages

.PHONY: vagrant-test
vagrant-test: setup $(BOX) ## The Vagrantfile for real: vagrant up on an emulated machine, ssh, destroy
	$(call install_packages,$(VAGRANT_PACKAGES))
	$(VENV)/bin/pytest -q tests/vm/test_vagrantfile.py
	$(QUIETLY) vagrant/box/try $(BOX)

# bough: sandboxes whose file systems branch like git, for Lua 5.4.
#
# `make demo` and `make test` do their own set-up on Debian; everywhere else
# README.md names the packages. `make help` lists the targets.

# --- packages (Debian names; the one list) ---------------------------------
# to build and to run
PACKAGES := gcc libc6-dev make pkg-config \
  lua5.4 liblua5.4-dev libuv1-dev libsqlite3-dev libarchive-dev zlib1g-dev libseccomp-dev \
  libcurl4-openssl-dev libssl-dev libpcre2-dev libmicrohttpd-dev lua-cjson busybox-static uidmap
# what the tests use besides
TEST_PACKAGES := lua-busted lua-check lua-cqueues lua-luv lua-system luarocks valgrind mmdebstrap zstd xz-utils \
  skopeo podman docker-registry tmux vim-tiny less curl nghttp2-proxy
# what `make lint`, `make fuzz` and `make bench` use besides
LINT_PACKAGES := clang-format clang-tidy
FUZZ_PACKAGES := clang
BENCH_PACKAGES := bubblewrap crun runc lua-system lua-luv podman mmdebstrap zstd curl wrk

# --- what may be set from outside ------------------------------------------
LUA_VERSION ?= 5.4
BUILD ?= build
CC ?= cc
CFLAGS ?= -O2 -g
LDFLAGS ?=
PKG_CONFIG ?= pkg-config
PREFIX ?= /usr/local
DESTDIR ?=
INST_PREFIX ?= $(PREFIX)
INST_LUADIR ?= $(INST_PREFIX)/share/lua/$(LUA_VERSION)
INST_LIBDIR ?= $(INST_PREFIX)/lib/lua/$(LUA_VERSION)
INST_BINDIR ?= $(INST_PREFIX)/bin
LUA ?= $(firstword $(shell command -v lua$(LUA_VERSION) lua-$(LUA_VERSION) lua) lua$(LUA_VERSION))
BUSTED ?= $(firstword $(shell command -v busted) busted)
# flags for spec/support/run.lua, for instance TEST_FLAGS="--only session --verbose"
TEST_FLAGS ?=

# --- flags -------------------------------------------------------------------
# pkg-config is asked when a recipe needs the answer, so that `make demo` can
# install it first.
LUA_PC = $(firstword $(shell for p in lua$(LUA_VERSION) lua-$(LUA_VERSION) \
  lua$(subst .,,$(LUA_VERSION)) lua; do \
  $(PKG_CONFIG) --exists "$$p >= $(LUA_VERSION)" 2>/dev/null && echo $$p; done))
LIBRARIES := libuv sqlite3 libcurl libcrypto libarchive zlib libseccomp libpcre2-8
# Only `bough serve` needs it: where it is missing, bough/httpd.so is not built.
HTTPD_LIBRARIES := libmicrohttpd zlib
LUA_CFLAGS = $(if $(LUA_INCDIR),-I$(LUA_INCDIR),$(shell $(PKG_CONFIG) --cflags $(LUA_PC)))

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes \
  -Wpointer-arith -Wformat=2 -Wvla -Wundef
HARDENING := -fstack-protector-strong $(if $(SANITIZE),,-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
SANITIZE_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer)
BASE_CFLAGS := -std=gnu11 $(CFLAGS) $(WARNINGS) $(if $(WERROR),-Werror) $(HARDENING) \
  $(SANITIZE_FLAGS) -fPIC -pthread -Isrc
ALL_CFLAGS = $(BASE_CFLAGS) $(LUA_CFLAGS) $(LIB_CFLAGS)
ALL_LDFLAGS := $(CFLAGS) $(SANITIZE_FLAGS) -pthread -Wl,--as-needed -Wl,-z,relro,-z,now $(LDFLAGS)

# Asked once per make, at the first use.
LIB_CFLAGS = $(eval LIB_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(LIBRARIES)))$(LIB_CFLAGS)
libs = $(shell $(PKG_CONFIG) --libs $(1))

# --- what is built from what ----------------------------------------------------
CORE_SRC := $(filter-out src/kin.c src/minder.c,$(wildcard src/*.c src/local/*.c))
# the base that the keeper shares with the core
BASE_SRC := src/command.c src/entry.c src/err.c src/order.c src/plan.c src/wire.c
KEEPER_SRC := $(wildcard src/keeper/*.c) src/kin.c src/minder.c $(BASE_SRC)
UNPACK_SRC := $(wildcard src/unpack/*.c) src/err.c src/sha256.c
LOOK_SRC := $(wildcard src/look/*.c) src/entry.c src/err.c src/record.c src/sha256.c
SPAWN_SRC := $(wildcard src/spawn/*.c) src/command.c src/err.c src/kin.c src/minder.c src/wire.c
HTTPD_SRC := $(wildcard src/httpd/*.c) src/err.c
TEST_SRC := $(wildcard spec/c/*_test.c)
# All that knows no Lua and has no main(): what C tests link with.
LUA_SRC := $(filter-out src/launch.c src/loop.c,$(wildcard src/l*.c))
LIBTEST_SRC := $(sort $(filter-out $(LUA_SRC),$(CORE_SRC)) \
  $(filter-out %/main.c,$(KEEPER_SRC) $(UNPACK_SRC) $(LOOK_SRC) $(SPAWN_SRC)))

# V=1 shows the commands.
say = $(if $(V),,@echo "  $(1)";)
JOBS := -j$(shell nproc 2>/dev/null || echo 1)

objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
C_TESTS := $(patsubst %.c,$(BUILD)/%,$(TEST_SRC))
PROGRAMS := $(BUILD)/bough/core.so $(BUILD)/bough/bough-keeper $(BUILD)/bough/bough-unpack \
  $(BUILD)/bough/bough-look $(BUILD)/bough/bough-spawn
HTTPD := $(if $(shell $(PKG_CONFIG) --exists 'libmicrohttpd >= 0.9.71' $(HTTPD_LIBRARIES) 2>/dev/null && echo yes),$(BUILD)/bough/httpd.so)
LUA_FILES := $(shell find lua -name '*.lua' 2>/dev/null)

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all help deps deps-test deps-lint deps-fuzz deps-bench fuzz demo run-demo test test-user check c-tests \
  lint luacheck format-check tidy format asan valgrind bench install clean libraries examples

all: $(PROGRAMS) $(HTTPD) ## the core module, the HTTP server's and four helper programs, below build/bough

help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | \
	  while IFS="$$(printf '\t')" read -r t d; do printf '%-12s %s\n' "$$t" "$$d"; done

# One clear line when a library is not there, before the compiler says it in fifty.
libraries:
	@command -v $(PKG_CONFIG) >/dev/null || { \
	  echo "bough: $(PKG_CONFIG) is missing: run 'make deps' (Debian), or see README.md" >&2; exit 1; }
	@for p in $(LIBRARIES); do $(PKG_CONFIG) --exists $$p || { \
	  echo "bough: $$p is missing: run 'make deps' (Debian), or see README.md" >&2; exit 1; }; done
	@test -n "$(LUA_INCDIR)$(LUA_PC)" || { \
	  echo "bough: no Lua $(LUA_VERSION) headers: run 'make deps' (Debian), or see README.md" >&2; exit 1; }

$(BUILD)/obj/%.o: %.c Makefile | libraries
	@mkdir -p $(@D)
	$(call say,CC   $<) $(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# Nothing but the entry point is visible: a host may have its own copy of anything.
$(BUILD)/core.map: Makefile
	@mkdir -p $(@D)
	@echo '{ global: luaopen_bough_core; local: *; };' >$@

$(BUILD)/bough/core.so: $(call objects,$(CORE_SRC)) $(BUILD)/core.map
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -shared -Wl,--version-script=$(BUILD)/core.map $(ALL_LDFLAGS) -o $@ \
	  $(filter %.o,$^) $(call libs,libuv sqlite3 libcurl libcrypto zlib)
	@! nm -D --undefined-only $@ | grep ' bough_' # Lua's are the interpreter's; ours must be there

# Independent of the core: it has the loop's help only through Lua.
$(BUILD)/httpd.map: Makefile
	@mkdir -p $(@D)
	@echo '{ global: luaopen_bough_httpd; local: *; };' >$@

$(call objects,$(filter src/httpd/%,$(HTTPD_SRC))): ALL_CFLAGS += $(shell $(PKG_CONFIG) --cflags $(HTTPD_LIBRARIES))

$(BUILD)/bough/httpd.so: $(call objects,$(HTTPD_SRC)) $(BUILD)/httpd.map
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -shared -Wl,--version-script=$(BUILD)/httpd.map $(ALL_LDFLAGS) -o $@ \
	  $(filter %.o,$^) $(call libs,$(HTTPD_LIBRARIES)) -lm
	@! nm -D --undefined-only $@ | grep ' bough_'

$(BUILD)/bough/bough-keeper: $(call objects,$(KEEPER_SRC))
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -pie $(ALL_LDFLAGS) -o $@ $^ $(call libs,libseccomp)

$(BUILD)/bough/bough-unpack: $(call objects,$(UNPACK_SRC))
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -pie $(ALL_LDFLAGS) -o $@ $^ $(call libs,libarchive zlib libcrypto libseccomp)

$(BUILD)/bough/bough-look: $(call objects,$(LOOK_SRC))
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -pie $(ALL_LDFLAGS) -o $@ $^ \
	  $(call libs,libarchive libcrypto libpcre2-8 libseccomp)

$(BUILD)/bough/bough-spawn: $(call objects,$(SPAWN_SRC))
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) -pie $(ALL_LDFLAGS) -o $@ $^

# --- set-up ---------------------------------------------------------------------
deps: ## installs what building and running need (Debian)
	@.ci/deps $(PACKAGES)

deps-test: ## the same with what the tests need
	@.ci/deps $(PACKAGES) $(TEST_PACKAGES)

deps-lint:
	@.ci/deps $(PACKAGES) $(TEST_PACKAGES) $(LINT_PACKAGES)

deps-fuzz:
	@.ci/deps $(PACKAGES) $(FUZZ_PACKAGES)

deps-bench:
	@.ci/deps $(PACKAGES) $(BENCH_PACKAGES) || true

# --- the main job ----------------------------------------------------------------
# From the tree, without installing: these paths serve every target below.
LUA_ENV = LUA_PATH="lua/?.lua;lua/?/init.lua;./?.lua;;" LUA_CPATH="$(BUILD)/?.so;;"

demo: deps ## sets up, builds, and shows three fixes tried in parallel
	@$(MAKE) --no-print-directory $(JOBS) run-demo

run-demo: all
	@$(LUA_ENV) $(LUA) examples/demo.lua

# --- tests -------------------------------------------------------------------------
test: deps-test ## sets up, builds, and runs all tests; the last line is the sum
	@$(MAKE) --no-print-directory $(JOBS) check

check: all c-tests examples
	@$(LUA_ENV) $(LUA) spec/support/run.lua --build $(BUILD) --busted "$(BUSTED)" \
	  $(TEST_FLAGS) $(C_TESTS)

test-user: all examples ## the specs as an ordinary user only
	@$(LUA_ENV) $(LUA) spec/support/run.lua --build $(BUILD) --busted "$(BUSTED)" \
	  --stages user $(TEST_FLAGS)

c-tests: $(C_TESTS)

$(BUILD)/libtest.a: $(call objects,$(LIBTEST_SRC))
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/spec/c/%: $(BUILD)/obj/spec/c/%.o $(BUILD)/libtest.a
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) $(ALL_LDFLAGS) -o $@ $< $(BUILD)/libtest.a $(call libs,$(LIBRARIES))

# A host in C with a loop of its own; the specs run it.
examples: $(BUILD)/examples/epoll_host

$(BUILD)/examples/%: $(BUILD)/obj/examples/%.o
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) $(CFLAGS) $(SANITIZE_FLAGS) -Wl,-E $(LDFLAGS) -o $@ $< $(call libs,$(LUA_PC)) -lm -ldl

# A second build with the sanitizers. The interpreter is not built with them, so
# the runtime comes first by LD_PRELOAD; leaks are counted in the C tests, where
# every allocation is ours.
asan: ## the tests under the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory $(JOBS) BUILD=build-asan SANITIZE=address,undefined CFLAGS="-O1 -g" \
	  TEST_FLAGS="--stages c,specs --preload $$($(CC) -print-file-name=libasan.so) $(TEST_FLAGS)" check

valgrind: all c-tests ## the C tests under valgrind
	@$(LUA_ENV) $(LUA) spec/support/run.lua --build $(BUILD) --stages c \
	  --wrap "valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite" \
	  $(TEST_FLAGS) $(C_TESTS)

# What reads strangers' bytes, under libFuzzer; not part of the tests. FUZZ_TIME seconds for each
# target; what it finds is put into build/fuzz, new inputs go into a corpus there. The archives are
# unpacked without the jail, so this is for an ordinary user.
FUZZ_TIME ?= 60
FUZZ_FLAGS = -max_total_time=$(FUZZ_TIME) -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/

fuzz: deps-fuzz ## the readers of archives, layers and manifests, each for FUZZ_TIME seconds
	@$(MAKE) --no-print-directory $(JOBS) all $(BUILD)/fuzz/archive $(BUILD)/fuzz/manifest
	@mkdir -p $(BUILD)/fuzz/corpus/archive $(BUILD)/fuzz/corpus/manifest
	$(BUILD)/fuzz/archive $(FUZZ_FLAGS) -max_len=8192 $(BUILD)/fuzz/corpus/archive fuzz/corpus/archive
	$(LUA_ENV) $(BUILD)/fuzz/manifest $(FUZZ_FLAGS) -dict=fuzz/manifest.dict $(BUILD)/fuzz/corpus/manifest \
	  fuzz/corpus/manifest

$(BUILD)/fuzz/archive: fuzz/archive.c $(filter-out src/unpack/main.c,$(UNPACK_SRC)) Makefile
	@mkdir -p $(@D)
	$(call say,FUZZ $@) clang -std=gnu11 -O1 -g -fsanitize=fuzzer,address,undefined -Isrc -pthread -o $@ \
	  $(filter %.c,$^) $(call libs,libarchive zlib libcrypto libseccomp)

$(BUILD)/fuzz/manifest: fuzz/manifest.c Makefile
	@mkdir -p $(@D)
	$(call say,FUZZ $@) clang -std=gnu11 -O1 -g -fsanitize=fuzzer $(LUA_CFLAGS) -Wl,-E -o $@ $< \
	  $(call libs,$(LUA_PC)) -lm -ldl

# --- looking at the source ---------------------------------------------------------
lint: luacheck format-check tidy ## luacheck, clang-format and clang-tidy

C_FILES := $(wildcard src/*.[ch] src/*/*.[ch] spec/c/*.[ch] examples/*.c bench/*.c fuzz/*.c)

luacheck:
	luacheck -q lua bin/bough spec examples bench fuzz

format-check:
	clang-format --dry-run -Werror $(C_FILES)

format: ## formats the C files in place
	clang-format -i $(C_FILES)

tidy: | libraries
	printf '%s\n' $(filter %.c,$(C_FILES)) | xargs -n 2 -P "$$(nproc)" sh -c \
	  'clang-tidy --quiet "$$@" -- -std=gnu11 -Isrc $(LUA_CFLAGS) $(LIB_CFLAGS) 2>/dev/null' tidy

# --- measuring ------------------------------------------------------------------------
bench: deps-bench ## us and our peers in one run, with ratios
	@$(MAKE) --no-print-directory $(JOBS) all $(BUILD)/bench/floor
	@$(LUA_ENV) $(LUA) bench/run.lua --build $(BUILD) $(BENCH_FLAGS)

$(BUILD)/bench/floor: bench/floor.c Makefile
	@mkdir -p $(@D)
	$(call say,LINK $@) $(CC) $(BASE_CFLAGS) -o $@ $<

# --- installing -------------------------------------------------------------------------
install: all ## below PREFIX (or INST_LUADIR, INST_LIBDIR and INST_BINDIR), with DESTDIR in front
	@set -e; for f in $(LUA_FILES); do \
	  install -D -m 0644 "$$f" "$(DESTDIR)$(INST_LUADIR)/$${f#lua/}"; done
	install -d "$(DESTDIR)$(INST_LIBDIR)/bough"
	install -m 0755 $(PROGRAMS) $(HTTPD) "$(DESTDIR)$(INST_LIBDIR)/bough/"
	install -d "$(DESTDIR)$(INST_BINDIR)"
	sed -e '1s|.*|#!$(or $(shell command -v $(LUA)),/usr/bin/env $(LUA))|' -e 's|@LUADIR@|$(INST_LUADIR)|' \
	  -e 's|@LIBDIR@|$(INST_LIBDIR)|' bin/bough >"$(DESTDIR)$(INST_BINDIR)/bough"
	chmod 0755 "$(DESTDIR)$(INST_BINDIR)/bough"

clean: ## removes what was built
	rm -rf build build-asan $(BUILD)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

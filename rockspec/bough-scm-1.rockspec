rockspec_format = "3.0"
package = "bough"
version = "scm-1"

-- A checkout is the source: `luarocks make --deps-mode=none rockspec/bough-scm-1.rockspec`
source = {
  url = "git+file://.",
}

description = {
  summary = "Sandboxes whose file systems branch like git",
  detailed = [[
Runs commands in sandboxes from Lua. Every run leaves an immutable image; a session moves along
those images, back, and apart. Embedded on Linux: no daemon, no account, no download.]],
  license = "MIT",
  labels = { "sandbox", "container", "process", "linux" },
}

supported_platforms = { "linux" }

dependencies = {
  "lua >= 5.4, < 5.5",
  "lua-cjson >= 2.1",
}

external_dependencies = {
  LIBUV = { header = "uv.h" },
  SQLITE = { header = "sqlite3.h" },
  LIBCURL = { header = "curl/curl.h" },
  OPENSSL = { header = "openssl/evp.h" },
  LIBARCHIVE = { header = "archive.h" },
  PCRE2 = { header = "pcre2.h" },
  ZLIB = { header = "zlib.h" },
  LIBSECCOMP = { header = "seccomp.h" },
}

test_dependencies = {
  "busted >= 2.1",
}

test = {
  type = "busted",
}

-- The Makefile finds the libraries by pkg-config. The helper programs are
-- installed beside core.so, where it looks for them.
build = {
  type = "make",
  build_target = "all",
  install_target = "install",
  build_variables = {
    CFLAGS = "$(CFLAGS)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    LUA = "$(LUA)",
  },
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    LUA = "$(LUA)",
    INST_PREFIX = "$(PREFIX)",
    INST_LUADIR = "$(LUADIR)",
    INST_LIBDIR = "$(LIBDIR)",
    INST_BINDIR = "$(BINDIR)",
  },
  copy_directories = { "docs", "examples" },
}

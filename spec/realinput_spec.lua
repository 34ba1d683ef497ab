--- Real input: a Debian root builds Lua in a session.

local bough = require "bough"
local raises = require "spec.support.raises"
local root_debian = require "spec.support.root_debian"
local scratch = require "spec.support.scratch"
local system = require "system"

local SRC = { cwd = "/usr/src/lua", env = { PATH = "/usr/sbin:/usr/bin:/sbin:/bin" }, timeout = 300 }

local function with(more)
  local opts = {}
  for name, value in pairs(SRC) do opts[name] = value end
  for name, value in pairs(more or {}) do opts[name] = value end
  return opts
end

-- A line on the way: these tests are about a minute's work, and people wonder where it went.
local function tell(what, seconds) io.write(("# %-44s %6.2f s\n"):format(what, seconds)) end

local function timed(what, fn)
  local started = system.monotime()
  local value = fn()
  tell(what, system.monotime() - started)
  return value
end

describe("a Debian root", function()
  local box, debian

  lazy_setup(function()
    local path, seconds = root_debian.tarball()
    if seconds then tell("making the Debian root", seconds) end
    box = bough.open { home = scratch.store() }
    debian = timed("importing it", function() return box.images:import(path, { tag = "debian" }) end)
  end)

  lazy_teardown(function()
    if box then box:close() end
  end)

  it("comes in whole, with its owners, modes and links", function()
    local found = {}
    for _, entry in ipairs(debian:ls "/usr/bin") do found[entry.name] = entry end
    assert.equal("symlink", found.gcc.kind)
    assert.equal("gcc-12", (found.gcc.symlink_to:gsub("%d+$", "12")))
    assert.equal(tonumber("0755", 8), found.make.mode)
    if box:info().uids == "one" then return end
    local ran = debian:run("cd / && stat -c '%u:%g %a' bin/su sbin/unix_chkpwd var/mail tmp",
      { check = true })
    assert.equal("0:0 4755\n0:42 2755\n0:8 2775\n0:0 1777\n", ran.stdout)
  end)

  it("builds Lua in a session, with edits, a broken build, and a rollback", function()
    local s <close> = debian:session(SRC)
    timed("first build", function() return s:run("make -j2 linux MYCFLAGS=-O1", { check = true }) end)
    local version = s:run("src/lua -v", { check = true, disposable = true }).stdout
    assert.match("^Lua 5%.4%.%d", version)
    assert.equal("5050\n", s:run { "src/lua", "-e", "local n=0 for i=1,100 do n=n+i end print(n)",
      check = true, disposable = true }.stdout)

    -- an edit by a patch that a run writes, and the build after it, which has only one file to compile
    s:run([[
set -e
cat >greet.patch <<'EOF'
--- a/src/lua.c
+++ b/src/lua.c
@@ -1 +1,2 @@
+#define GREETING "a branch of Lua\n"
 /*
EOF
sed 's/^@@.*/@@ -1,1 +1,2 @@/' greet.patch | patch -p1
sed -i 's/^static void print_version (void) {/&\n  lua_writestring(GREETING, sizeof GREETING - 1);/' src/lua.c
]], { check = true })
    local good = timed("build after an edit", function()
      return s:run("make linux MYCFLAGS=-O1", { check = true })
    end)
    assert.equal("a branch of Lua\n" .. version, s:run("src/lua -v", { disposable = true }).stdout)
    assert.not_match("lvm.c", good.stdout)

    -- a broken one
    s:run("sed -i 's/lua_writestring(GREETING/lua_writestrin(GREETING}/' src/lua.c", { check = true })
    local broken = timed("a broken build", function() return s:run "make linux MYCFLAGS=-O1" end)
    assert.is_false(broken.ok)
    assert.equal(2, broken.exit_code)
    assert.match("lua%.c:%d+:%d+: error", broken.stderr)
    assert.equal(broken.uuid, s.uuid)
    local problem = raises("exit", s.run, s, "make linux MYCFLAGS=-O1", { check = true })
    assert.match("exit code 2", tostring(problem))
    assert.match("lua%.c:%d+:%d+: error", problem.result.stderr)

    local steps = s:history()
    local undo = #steps
    for i, step in ipairs(steps) do
      if step.uuid == good.uuid then undo = #steps - i end
    end
    assert.is_true(undo >= 2)
    s:rollback(undo)
    assert.equal(good.uuid, s.uuid)
    assert.equal("a branch of Lua\n" .. version, s:run("src/lua -v", { disposable = true }).stdout)

    -- the same edit without the mistake, by whichever way there is
    local text = s:read "/usr/src/lua/src/lua.c":gsub("a branch of Lua", "a better branch of Lua")
    local placed, why = pcall(s.apply_files, s, { ["/usr/src/lua/src/lua.c"] = { content = text } })
    if not placed then
      assert.equal("unsupported", why.kind)
      s:run("cat >src/lua.c", { stdin = text, check = true })
    end
    assert.equal(text, s:read "/usr/src/lua/src/lua.c")
    timed("build after the rollback", function()
      return s:run("make linux MYCFLAGS=-O1", { check = true })
    end)
    local last = s:run("src/lua -v && src/luac -p /dev/null && src/lua -e 'print(2^53 | 0)'",
      { check = true })
    assert.equal("a better branch of Lua\n" .. version .. "9007199254740992\n", last.stdout)

    local told = {}
    for _, step in ipairs(s:history()) do told[#told + 1] = step.command or step.op end
    local all = table.concat(told, " | ")
    assert.equal("session", told[1])
    assert.match("make %-j2 linux.*greet%.patch.*make linux.*make linux.*src/lua %-v", all)
    assert.not_match("lua_writestrin%(", all)
    assert.equal(debian.uuid, s:history()[1].uuid)
    box.images:get(broken.uuid) -- left behind, not gone
  end)

  it("builds branches with other flags in parallel, and they do not meet", function()
    local started = system.monotime()
    local plain, strict
    local user_time = bough.run(function()
      local s <close> = debian:session(SRC)
      local one <close> = s:branch()
      local two <close> = s:branch()
      local built = bough.all {
        function() return one:run("make linux MYCFLAGS=-O0", { check = true }) end,
        function() return two:run("make linux MYCFLAGS='-O0 -ULUA_COMPAT_5_3'", { check = true }) end,
      }
      plain = one:run("src/lua -e 'print(math.pow)'", { check = true }).stdout
      strict = two:run("src/lua -e 'print(math.pow)'", { check = true }).stdout
      assert.equal(debian.uuid, s.uuid)
      return built[1].result.user_time + built[2].result.user_time
    end)
    tell("two branches in parallel", system.monotime() - started)
    tell("  of CPU time", user_time)
    assert.match("^function", plain)
    assert.equal("nil\n", strict)
    raises("not_found", debian.read, debian, "/usr/src/lua/src/lua")
    assert.equal("succeeded", debian:run("test ! -e src/lua", with { disposable = true }).state)
  end)
end)

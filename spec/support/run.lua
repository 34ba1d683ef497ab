--- Runs all tests and ends with one line: "N passed, N failed, N skipped".
--
--   lua spec/support/run.lua [options] [C test program...]
--     --stages LIST   of c, specs, user (default: all)
--     --only PATTERN  spec files and C tests whose path contains it
--     --build DIR     what `make` built (default: build)
--     --busted PATH   the test runner
--     --wrap COMMAND  in front of each C test (valgrind)
--     --preload LIB   into the interpreter of the specs (a sanitizer's runtime)
--     --verbose       every line, not only what failed
--
-- `specs` runs spec/**/*_spec.lua as whoever calls; `user` runs them once more as an
-- ordinary user when root calls, in a copy that this user can read. Each file has
-- a process of its own: when one dies, the others still tell.

local ledger = require "spec.support.ledger"
local scratch = require "spec.support.scratch"
local tally = require "spec.support.tally"

local quote = scratch.quote
local USER = "bough-test"

local opts = { stages = "c,specs,user", build = "build", busted = "busted", wrap = "" }
local c_tests = {}
do
  local i = 1
  while arg[i] do
    local name = arg[i]:match "^%-%-(.+)"
    if name == "verbose" then
      opts.verbose = true
    elseif name then
      i = i + 1
      opts[name] = arg[i] or error("--" .. name .. " needs a value", 0)
    else
      c_tests[#c_tests + 1] = arg[i]
    end
    i = i + 1
  end
end

local function truthy(name)
  local value = os.getenv(name)
  return value and value ~= "" and value ~= "0" and value ~= "false"
end

local function lines_of(command)
  local pipe = assert(io.popen(command))
  local lines = {}
  for line in pipe:lines() do
    lines[#lines + 1] = line
  end
  pipe:close()
  return lines
end

-- README.md names the tests that may be skipped even where all must run: the list
-- below its heading "Tests that may be skipped", each name in backticks.
local allowed = {}
do
  local inside = false
  for line in io.lines "README.md" do
    if line:find "^#" then
      inside = line:find "Tests that may be skipped" ~= nil
    elseif inside then
      allowed[#allowed + 1] = line:match "^%s*%-%s*`([^`]+)`"
    end
  end
end

local sum = tally.new {
  must_run = truthy "BOUGH_MUST_RUN" or truthy "CI",
  may_skip = function(name)
    for _, part in ipairs(allowed) do
      if name:find(part, 1, true) then
        return true
      end
    end
    return false
  end,
}

local function heading(text)
  print("== " .. text)
  io.flush()
end

-- Runs one program and counts its TAP. Prints what is not well, and one line for the rest.
local function run_tap(name, command)
  local before = { sum.passed, sum.failed, sum.skipped }
  local started = os.time()
  local program = sum:program(name)
  local pipe = assert(io.popen(command))
  local telling = false
  for line in pipe:lines() do
    local verdict = program.line(line)
    if verdict then
      telling = verdict ~= "passed"
    end
    if opts.verbose or (telling and (verdict or line:find "^#")) then
      print("   " .. line)
      io.flush()
    end
  end
  local failed = sum.failed
  program.finish(pipe:close())
  if sum.failed > failed then
    print("   not ok - " .. sum.failures[#sum.failures])
  end
  local seconds = os.time() - started
  print(("   %-56s %3d passed%s%s%s"):format(name, sum.passed - before[1],
    sum.failed > before[2] and (", %d FAILED"):format(sum.failed - before[2]) or "",
    sum.skipped > before[3] and (", %d skipped"):format(sum.skipped - before[3]) or "",
    seconds > 1 and (" (%d s)"):format(seconds) or ""))
  io.flush()
end

local function wanted(path)
  return not opts.only or path:find(opts.only, 1, true) ~= nil
end

local spec_files = {}
for _, path in ipairs(lines_of "find spec -name '*_spec.lua' | LC_ALL=C sort") do
  if wanted(path) then
    spec_files[#spec_files + 1] = path
  end
end

local lua = arg[-1]
-- Debian's busted is a Lua script for whichever `lua` is first; others wrap it in sh.
local busted
do
  local file = io.open(opts.busted)
  local first = file and file:read "l" or ""
  if file then
    file:close()
  end
  busted = first:find "lua" and quote(lua) .. " " .. quote(opts.busted) or quote(opts.busted)
end

-- Runs one program with a temporary directory of its own, and counts what it leaves as a
-- failure. `command(dir)` gives the shell line.
local function run_clean(name, owner, command)
  local dir = lines_of "mktemp -d /tmp/bough-spec.XXXXXX"[1]
  assert(os.execute(("mkdir %s/home %s/tmp && chmod 0755 %s && chmod 1777 %s/tmp")
    :format(dir, dir, dir, dir)))
  if owner then
    assert(os.execute(("chown %s: %s/home %s/tmp"):format(owner, dir, dir)))
  end
  local at = { outside = true, dir = dir .. "/tmp" }
  local before = ledger.snapshot(at)
  local failed = sum.failed
  run_tap(name, command(dir))
  local leaks = ledger.leaks(before, at)
  if #leaks > 0 then
    local line = name .. " leaves behind: " .. table.concat(leaks, "; ")
    print("   not ok - " .. line)
    if sum.failed == failed then -- else its own ledger has told already
      sum:fail(line)
    end
  end
  scratch.remove(dir)
end

local cwd = lines_of "pwd"[1]
local build = opts.build:find "^/" and opts.build or cwd .. "/" .. opts.build

-- What every test program finds in its environment.
local function environment(dir)
  local env = {
    "BOUGH_SPEC=1",
    "HOME=" .. dir .. "/home",
    "BOUGH_HOME=" .. dir .. "/home/store",
    "TMPDIR=" .. dir .. "/tmp",
    "PATH=" .. quote(os.getenv "PATH" or "/usr/sbin:/usr/bin:/sbin:/bin"),
  }
  for _, name in ipairs { "CI", "BOUGH_LEDGER", "BOUGH_TEST_SEED", "BOUGH_TEST_ROUNDS", "BOUGH_TEST_STRESS" } do
    if os.getenv(name) then
      env[#env + 1] = name .. "=" .. quote(os.getenv(name))
    end
  end
  if sum.opts.must_run then
    env[#env + 1] = "BOUGH_MUST_RUN=1"
  end
  return env
end

local function run_c_test(program)
  run_clean(program:match "[^/]+$", nil, function(dir)
    local env = environment(dir)
    env[#env + 1] = "BOUGH_KEEPER=" .. quote(build .. "/bough/bough-keeper")
    env[#env + 1] = "BOUGH_UNPACK=" .. quote(build .. "/bough/bough-unpack")
    env[#env + 1] = "BOUGH_LOOK=" .. quote(build .. "/bough/bough-look")
    env[#env + 1] = "BOUGH_SPAWN=" .. quote(build .. "/bough/bough-spawn")
    return ("timeout -k 10 300 env %s %s %s </dev/null")
      :format(table.concat(env, " "), opts.wrap, quote(program))
  end)
end

-- `prefix` makes it another user, who reads the tree in `where`.
local function run_spec(path, where, prefix)
  run_clean(prefix and path .. " (as " .. USER .. ")" or path, prefix and USER, function(dir)
    local env = environment(dir)
    for _, setting in ipairs {
      "BOUGH_BUILD=" .. opts.build,
      "LUA_PATH=" .. quote "lua/?.lua;lua/?/init.lua;./?.lua;;",
      "LUA_CPATH=" .. quote(opts.build .. "/?.so;;"),
      "LUA_INIT=",
    } do
      env[#env + 1] = setting
    end
    if opts.preload then
      env[#env + 1] = "LD_PRELOAD=" .. quote(opts.preload)
      env[#env + 1] = "ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=8"
      env[#env + 1] = "UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1"
    end
    return ("cd %s && %s timeout -k 10 900 env -u XDG_DATA_HOME -u BOUGH_KEEPER %s %s"
      .. " -o spec/support/tap.lua --helper spec/support/helper.lua %s </dev/null")
      :format(quote(where), prefix or "", table.concat(env, " "), busted, path)
  end)
end

local function run_specs(title, where, prefix)
  heading(title)
  for _, path in ipairs(spec_files) do
    run_spec(path, where, prefix)
  end
end

-- An ordinary user with a range of subordinate uids, made once.
local function make_user()
  local function range_free(file)
    local top = 100000
    local handle = io.open(file)
    if handle then
      for line in handle:lines() do
        local name, first, count = line:match "^([^:]+):(%d+):(%d+)"
        if name == USER then
          handle:close()
          return nil
        elseif first then
          top = math.max(top, tonumber(first) + tonumber(count))
        end
      end
      handle:close()
    end
    return top
  end
  if not os.execute("id " .. USER .. " >/dev/null 2>&1") then
    local made = os.execute(("useradd --system --user-group --no-create-home --home-dir /nonexistent "
      .. "--shell /usr/sbin/nologin %s"):format(USER))
    if not made then
      return nil, "cannot make the user " .. USER
    end
  end
  for file, flag in pairs { ["/etc/subuid"] = "--add-subuids", ["/etc/subgid"] = "--add-subgids" } do
    local first = range_free(file)
    if first and not os.execute(("usermod %s %d-%d %s"):format(flag, first, first + 65535, USER)) then
      return nil, "cannot give " .. USER .. " a range in " .. file
    end
  end
  return true
end

local function run_user_stage()
  local ok, why = make_user()
  if not ok then
    print("   " .. why)
    sum:skip("specs as an ordinary user: " .. why)
    return
  end
  local copy = lines_of "mktemp -d /tmp/bough-copy.XXXXXX"[1]
  assert(os.execute(("chmod 0755 %s && tar --exclude=./.git --exclude='./build*/obj' -cf - . | "
    .. "tar -C %s --no-same-owner -xf - && chown -R %s: %s"):format(copy, copy, USER, copy)))
  run_specs("specs as " .. USER, copy,
    ("setpriv --reuid=%s --regid=%s --init-groups --inh-caps=-all --reset-env"):format(USER, USER))
  scratch.remove(copy)
end

local stages = {}
for stage in opts.stages:gmatch "%a+" do
  stages[stage] = true
end

if stages.c and #c_tests > 0 then
  heading "C tests"
  table.sort(c_tests)
  for _, program in ipairs(c_tests) do
    if wanted(program) then
      run_c_test(program)
    end
  end
end
if stages.specs or (stages.user and not scratch.is_root) then
  run_specs("specs as " .. lines_of("id -un")[1], cwd)
end
if stages.user and scratch.is_root then
  run_user_stage()
end

if #sum.failures > 0 then
  print "== failed"
  for _, name in ipairs(sum.failures) do
    print("   " .. name)
  end
end
if sum.passed + sum.failed == 0 then
  sum:fail "no tests were found"
end
print(sum)
os.exit(sum.failed == 0)

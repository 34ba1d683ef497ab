-- Every example runs, in a process of its own, and prints what it is meant to print.

local scratch = require "spec.support.scratch"

local expected = {
  ["hello.lua"] = { "hello from bough" },
  ["session.lua"] = { "one\nsession" },
  ["parallel.lua"] = { "1 one\n2 two\n3 three\n", "deadline:%s+false%s+timeout" },
  ["frame_loop.lua"] = { "result: compiled", "took more than one frame: true" },
  ["luv_host.lua"] = { "from a sandbox", "luv's own timer went on: true" },
  ["cqueues_host.lua"] = { "from a sandbox", "cqueues' own coroutine went on: true" },
  ["travel.lua"] = { "%d+ Lua files", "cached:%s+false%s+true", "A /count",
    "the same after the journey:%s+true" },
  ["live.lua"] = { "20 22%s+%->%s+42\nexit code%s+0\nasked: 1 2; 20 22; \n", "daemon:%s+up\n",
    "counted so far:%s+true%s+still running:%s+true", "ended with%s+143%s+signal%s+15", "same sandbox:%s+server",
    "APPLE\nFIG\n$" },
  ["pipeline.lua"] = { "grep %-c 7%s+19\n3 the\n1 dog\n", "last line:%s+two%s+lines:%s+2\n",
    "status:%s+0%s+stages:%s+3%s+0\n",
    "stage 1 .-exit code 3", "> hello\n> world\n" },
  ["contree.lua"] = { "engine \"http://127.0.0.1:%d+\"", "1%s+one three two", "2%s+two three one",
    "got four\ngot five\nexit%s+0%s+2" },
  ["demo.lua"] = { "retry until it reads%s+stopped at its time limit",
    "let awk add it up%s+ok: the bill is 450", "dropped 3 images" },
}

local function run(command)
  return scratch.sh(("BOUGH_HOME=%s timeout 60 %s"):format(scratch.quote(scratch.store()), command))
end

local function check(output, patterns)
  for _, pattern in ipairs(patterns) do
    assert.match(pattern, output)
  end
end

describe("examples", function()
  for name, patterns in pairs(expected) do
    it(name .. " prints what it promises", function()
      check(run("lua5.4 examples/" .. name), patterns)
    end)
  end

  it("shell.lua gives a shell, and tells what it has changed", function()
    check(run "sh -c 'echo \"echo hello > /made; exit 5\" | lua5.4 examples/shell.lua'",
      { "the shell ended with 5", "added%s+/made" })
  end)

  it("epoll_host, a host in C with a loop of its own, prints what its script promises", function()
    local build = os.getenv "BOUGH_BUILD" or "build"
    check(run(build .. "/examples/epoll_host examples/epoll_host.lua"), { "from a sandbox" })
  end)

  it("are all here", function()
    local listed = scratch.sh "ls examples"
    for name in listed:gmatch "%S+%.lua" do
      assert(expected[name] or name == "epoll_host.lua" or name == "shell.lua", name .. " has no test")
    end
  end)

  it("those of the manual and of processes.md work as they stand", function()
    local parts = { 'local bough = require "bough"\nlocal box <close> = bough.open()',
      'local base = box.images:use "busybox"' }
    for _, path in ipairs { "docs/manual.md", "docs/processes.md" } do
      for block in io.open(path):read("a"):gmatch "```lua\n(.-)```" do
        parts[#parts + 1] = ("do\nlocal s <close> = base:session()\n%s\nend"):format(block)
      end
    end
    local script = scratch.file(table.concat(parts, "\n"))
    check(run("lua5.4 " .. script), { "2\n4\n6\nfalse\ttimeout\n42\n", "100000\n", "137\t9\ttrue\n",
      "not_found\tpopen: program \"made\"", "30 100" })
  end)

  it("the README names the packages that the Makefile installs on Debian", function()
    local makefile = io.open("Makefile"):read("a"):gsub("\\\n", " ")
    local function words(text)
      local all = {}
      for word in text:gmatch "%S+" do all[#all + 1] = word end
      return all
    end
    local function made(name) return words(makefile:match("\n" .. name .. " := ([^\n]*)")) end
    local readme = io.open("README.md"):read "a"
    local needed, tested = readme:match "| Debian, Ubuntu | `([^`]*)` | `([^`]*)` |"
    assert.same(made "PACKAGES", words(needed))
    assert.same(made "TEST_PACKAGES", words(tested))
    local paths = makefile:match '\nLUA_ENV = ([^\n]*)':gsub("%$%(BUILD%)", "build")
    for variable in paths:gmatch '%S+="[^"]*"' do
      assert.is_truthy(readme:find(variable, 1, true), variable)
    end
  end)

  it("the README's works as it stands", function()
    local code
    for block in io.open("README.md"):read("a"):gmatch "```lua\n(.-)```" do
      code = code or block
    end
    local script = scratch.file(code .. "\nprint(s:ls('/')[1].name)\n")
    check(run("lua5.4 " .. script), { "hello%s+0", "bin" })
  end)
end)

local core = require "bough.core"
local bough = require "bough"
local options = require "bough.options"
local raises = require "spec.support.raises"

local function refused(command, opts, kind)
  return raises(kind or "invalid", options.spec, command, opts, { op = "run" }).message
end

describe("bough.options", function()
  describe("spec: the command", function()
    it("takes the array part as it is", function()
      local spec = options.spec { "ls", "-l", 7, 1.5 }
      assert.same({ "ls", "-l", "7", "1.5" }, spec.argv)
      assert.equal("ls -l 7 1.5", spec.command)
    end)

    it("turns shell, or a string alone, into the image's shell", function()
      assert.same({ "/bin/sh", "-c", "make -j2" }, options.spec({ shell = "make -j2" }).argv)
      local spec = options.spec("make -j2", { timeout = 60 })
      assert.same({ "/bin/sh", "-c", "make -j2" }, spec.argv)
      assert.equal(60.0, spec.timeout)
      assert.equal("make -j2", spec.command)
    end)

    it("joins command and args", function()
      assert.same({ "ls", "-l" }, options.spec({ command = "ls", args = { "-l" } }).argv)
      assert.same({ "ls" }, options.spec({ command = "ls" }).argv)
    end)

    it("raises when there is none", function()
      assert.match("no command", refused {})
      refused { shell = 7 }
      refused { "" }
      assert.match("got nil", refused(nil))
      refused(42)
    end)

    it("raises when there are two", function()
      assert.match("both", refused { "ls", shell = "ls" })
      assert.match("both", refused { command = "ls", shell = "ls" })
      assert.match("both", refused { "ls", command = "ls" })
      assert.match("two commands", refused("ls", { "ls" }))
      assert.match("two commands", refused("ls", { shell = "ls" }))
      refused { "ls", args = { "-l" } }
      refused { shell = "ls", args = { "-l" } }
    end)

    it("takes shell = true with one line, and with nothing else", function()
      local line = { "/bin/sh", "-c", "a && b" }
      assert.same(line, options.spec("a && b", { shell = true }).argv)
      assert.same(line, options.spec({ "a && b", shell = true }).argv)
      assert.same(line, options.spec({ command = "a && b", shell = true }).argv)
      for _, command in ipairs { {}, { "a", "b" }, { "a", command = "b" }, { "a", args = {} }, { 5 }, { "a\0" } } do
        command.shell = true
        refused(command)
      end
      assert.match("two commands", refused("a", { "b", shell = true }))
      assert.match("a string is a shell line", refused("ls", { shell = false }))
    end)

    it("L9.29 raises for args given as a string, and says how to write it", function()
      assert.match('args = { "%-l" }', refused { command = "ls", args = "-l" })
    end)

    it("raises for arguments that are no text, hold NUL, or have a hole between them", function()
      refused { "ls", true }
      refused { "ls", {} }
      refused { "ls", "a\0b" }
      refused { shell = "a\0b" }
      assert.match("argument 2 of the command is nil", refused { [1] = "ls", [3] = "x" })
      refused { command = "ls", args = { [2] = "x" } }
      refused { [1.5] = "ls" }
      refused { command = "ls", args = { n = "x" } }
    end)

    it("raises for a second table of options", function()
      assert.match("own table", refused({ "ls" }, { timeout = 1 }))
      refused("ls", "timeout")
    end)

    it("describes a command in one clipped line", function()
      assert.equal("sh -x 'a b' ''", options.describe { "sh", "-x", "a b", "" })
      assert.equal("a b", options.describe { "/bin/sh", "-c", "\na\nb\n" })
      assert.is_true(#options.describe { ("x"):rep(1000) } <= 200)
    end)

    it("leaves the caller's table alone", function()
      local given = { "ls", env = { A = 1 } }
      options.spec(given)
      assert.same({ "ls", env = { A = 1 } }, given)
    end)
  end)

  describe("spec: unknown names", function()
    it("raise and name the nearest known one", function()
      assert.match('"timout": did you mean "timeout"', refused { "x", timout = 1 })
      assert.match('did you mean "env"', refused { "x", environment = {} })
      assert.match('did you mean "cwd"', refused { "x", workdir = "/" })
      assert.match('did you mean "disposable"', refused { "x", disposible = true })
      assert.match("known are command, args", refused { "x", frobnicate = true })
    end)

    it("raise in limits too", function()
      assert.match('unknown limit "mem": did you mean "memory"', refused { "x", limits = { mem = 1 } })
    end)
  end)

  describe("spec: values", function()
    it("takes env as text, numbers as text, and false", function()
      local spec = options.spec { "x", env = { A = "a", N = 1, F = 0.5, GONE = false } }
      assert.same({ A = "a", N = "1", F = "0.5", GONE = false }, spec.env)
    end)

    it("raises for env that cannot be", function()
      for _, env in ipairs { "A=1", { "A=1" }, { A = true }, { A = {} }, { ["A=B"] = "" }, { [""] = "" },
        { ["A\0"] = "" }, { A = "x\0y" } } do
        refused { "x", env = env }
      end
    end)

    it("wants an absolute cwd", function()
      assert.equal("/src", options.spec({ "x", cwd = "/src" }).cwd)
      assert.match('cwd must be an absolute path in the image, got "src"', refused { "x", cwd = "src" })
      refused { "x", cwd = "" }
      refused { "x", cwd = "/a\0" }
    end)

    it("takes users by id and by name", function()
      for _, user in ipairs { "0", "1000:1000", "nobody", "www-data:adm", "_apt" } do
        assert.equal(user, options.spec({ "x", user = user }).user)
      end
      assert.equal("1000", options.spec({ "x", user = 1000 }).user)
      for _, user in ipairs { "", "a b", "-1", "1:", ":1", "1:2:3", "4294967295",
        "99999999999999999999", "é" } do
        refused { "x", user = user }
      end
    end)

    it("takes hostnames of at most 64 bytes", function()
      assert.equal("a-1.b", options.spec({ "x", hostname = "a-1.b" }).hostname)
      for _, name in ipairs { "", "-a", "a-", "a..b", "a b", "a_b/", ("a"):rep(65), 5 } do
        refused { "x", hostname = name }
      end
    end)

    it("wants a positive timeout; math.huge is none", function()
      assert.equal(0.2, options.spec({ "x", timeout = 0.2 }).timeout)
      assert.is_nil(options.spec({ "x", timeout = math.huge }).timeout)
      for _, timeout in ipairs { 0, -1, 0 / 0, -math.huge, "5", true } do
        refused { "x", timeout = timeout }
      end
    end)

    it("keeps 1 MiB of output by default, any whole number when told, 0 too", function()
      assert.equal(1048576, options.spec({ "x" }).truncate_output_at)
      assert.equal(0, options.spec({ "x", truncate_output_at = 0 }).truncate_output_at)
      assert.equal(65536, options.spec({ "x", truncate_output_at = "64K" }).truncate_output_at)
      for _, size in ipairs { -1, 0.5, math.huge, 0 / 0, "x", true } do
        refused { "x", truncate_output_at = size }
      end
    end)

    it("takes sizes as bytes or text", function()
      local limits = options.spec({ "x", limits = { memory = "64M", disk = "1.5G", pids = 10, cpu = 0.5,
        files = 64 } }).limits
      assert.same({ memory = 64 << 20, disk = 3 << 29, pids = 10, cpu = 0.5, files = 64 }, limits)
      assert.equal(2048, options.spec({ "x", limits = { memory = "2 KiB" } }).limits.memory)
      assert.equal(5, options.spec({ "x", limits = { memory = 5 } }).limits.memory)
    end)

    it("raises for limits that cannot be", function()
      for name, values in pairs {
        memory = { 0, -1, 1.5, "", "M", "1X", "99999999999T", true },
        pids = { 0, 1.5, "5" }, cpu = { 0, -1, math.huge, "1" }, files = { 0 },
      } do
        for _, value in ipairs(values) do refused { "x", limits = { [name] = value } } end
      end
      refused { "x", limits = 5 }
    end)

    it("knows networks none, host and nat", function()
      assert.equal("none", options.spec({ "x" }).network)
      assert.equal("host", options.spec({ "x", network = "host" }).network)
      assert.equal("nat", options.spec({ "x", network = "nat" }).network) -- which not every engine has
      assert.match('did you mean "none"', refused { "x", network = "nine" })
      refused { "x", network = true }
    end)

    it("wants booleans where they belong", function()
      for _, name in ipairs { "disposable", "check", "queue", "cache" } do
        refused { "x", [name] = "yes" }
      end
      local _, policy = options.spec { "x", check = true, queue = true }
      assert.same({ check = true, queue = true }, policy)
    end)

    it("raises for a tag on a disposable run, and for tags that cannot be", function()
      assert.match("no image to tag", refused { "x", tag = "a", disposable = true })
      for _, tag in ipairs { "", "a b", "a\n", ("a"):rep(256), "00000000-0000-4000-8000-000000000000" } do
        refused { "x", tag = tag }
      end
      assert.equal("me/app:1", options.spec({ "x", tag = "me/app:1" }).tag)
    end)
  end)

  describe("spec: streams", function()
    it("captures by default and takes every kind of sink", function()
      local spec = options.spec { "x" }
      assert.is_true(spec.stdout)
      assert.is_true(spec.stderr)
      local sink = function() end
      for _, value in ipairs { true, false, core.INHERIT, "out.log", io.stdout, sink } do
        assert.equal(value, options.spec({ "x", stdout = value }).stdout)
      end
      assert.equal(core.STDOUT, options.spec({ "x", stderr = core.STDOUT }).stderr)
      assert.equal("a.log", options.spec({ "x", stdout = { path = "a.log" } }).stdout)
      assert.is_false(options.spec({ "x", stdout = bough.DEVNULL }).stdout)
    end)

    it("raises for sinks that cannot be", function()
      local closed = io.tmpfile()
      closed:close()
      for _, value in ipairs { "", 5, {}, closed, core.STDOUT, core.PIPE } do
        refused { "x", stdout = value }
      end
      assert.match("use popen", refused { "x", stderr = core.PIPE })
      refused({ "x", stdout = { path = "a", append = true } }, nil, "unsupported")
    end)

    it("L9.28 takes stdin as data, file, function or path", function()
      local source = function() end
      for _, value in ipairs { "data", io.stdin, source } do
        assert.equal(value, options.spec({ "x", stdin = value }).stdin)
      end
      assert.same({ path = "in.txt" }, options.spec({ "x", stdin = bough.file "in.txt" }).stdin)
      assert.same({ path = "in.txt" }, options.spec({ "x", stdin = { path = "in.txt" } }).stdin)
      assert.equal("abc", options.spec({ "x", stdin = bough.bytes "abc" }).stdin)
      assert.is_nil(options.spec({ "x" }).stdin)
    end)

    it("raises for sources that cannot be", function()
      for _, value in ipairs { 5, true, {}, { path = "" }, core.PIPE, core.STDOUT } do
        refused { "x", stdin = value }
      end
    end)

    it("takes input for stdin, but not both", function()
      local given = { "x", input = "data" }
      assert.equal("data", options.spec(given).stdin)
      assert.same({ "x", input = "data" }, given)
      assert.equal("data", options.spec("x", { input = "data" }).stdin)
      assert.match("both stdin and input", refused { "x", input = "a", stdin = "a" })
      assert.match("stdin must be data", refused { "x", input = 5 })
    end)

    it("says what to give instead of what is no stream, or the wrong end of one", function()
      local process <close> = bough.host({ "cat", stdin = core.PIPE }):start().stages[1]
      local reader, writer = core.pipe()
      local _ <close> = reader
      local _ <close> = writer
      local function message(given) return refused { "x", [given[1]] = given[2] } end
      assert.equal("stdin: got a process: give its stdout", message { "stdin", process })
      assert.equal("stdout: got a process: give its stdin", message { "stdout", process })
      assert.equal("stderr: got a process: give its stdin", message { "stderr", process })
      assert.match("a writer, which is the wrong end", message { "stdin", writer })
      assert.match("a reader, which is the wrong end", message { "stdout", reader })
      assert.match("got a command: join", message { "stdin", bough.host "x" })
      assert.match("got a task$", message { "stdout", bough.spawn(function() end) })
      process:kill()
    end)

    it("tells whose an option is that belongs to the sandbox", function()
      local function within(place)
        place.op, place.live = "exec", true
        return raises("invalid", options.spec, { "x", limits = {} }, nil, place).message
      end
      assert.equal("limits belongs to the sandbox, which is running already: give it to boot",
        within { inside = "give it to boot" })
      assert.equal("limits: a plain command of this machine has no sandbox", within { bare = true })
      assert.equal("host: network: a plain command of this machine has no sandbox",
        tostring(raises("invalid", bough.host, { "x", network = "host" })))
    end)

    it("allows pipes where somebody holds the other end", function()
      local spec = options.spec({ "x", stdin = core.PIPE, stdout = core.PIPE }, nil,
        { op = "popen", live = true })
      assert.equal(core.PIPE, spec.stdin)
      assert.equal(core.PIPE, spec.stdout)
    end)

    it("hands out lines when asked", function()
      assert.equal("lines", options.spec({ "x", text = "lines" }).text)
      assert.is_nil(options.spec({ "x", text = true }).text)
      refused { "x", text = "words" }
    end)
  end)

  describe("spec: files and cache", function()
    it("plans the files in the directory of the run", function()
      local spec = options.spec { "x", cwd = "/src", files = { "a.c", ["/etc/b"] = { content = "" } } }
      assert.same({ "/src/a.c", "/etc/b" }, { spec.files[1].path, spec.files[2].path })
      assert.is_nil(options.spec({ "x", files = {} }).files)
      refused { "x", files = "a.c" }
      refused { "x", files = { a = 5 } }
    end)

    it("refuses cache where nothing could be remembered", function()
      assert.is_true(options.spec({ "x", cache = true }).cache)
      assert.match("disposable", refused { "x", cache = true, disposable = true })
      assert.match("stdout", refused { "x", cache = true, stdout = "out.log" })
      assert.match("stdin", refused { "x", cache = true, stdin = io.stdin })
      assert.is_nil(options.spec({ "x", cache = false, disposable = true }).cache)
    end)
  end)

  describe("spec: the image's own", function()
    local image = { env = { PATH = "/bin", A = "i" }, cwd = "/srv", user = "www", entrypoint = { "e", "1" },
      cmd = { "c" } }
    local function with(command, defaults)
      return options.spec(command, nil, { op = "run", image = image, defaults = defaults })
    end

    it("goes under everything else", function()
      local spec = with { "x", env = { A = "own" } }
      assert.same({ PATH = "/bin", A = "own" }, spec.env)
      assert.same({ "/srv", "www" }, { spec.cwd, spec.user })
      spec = with({ "x" }, { cwd = "/d", env = { A = false }, user = "0" })
      assert.same({ PATH = "/bin", A = false }, spec.env)
      assert.same({ "/d", "0" }, { spec.cwd, spec.user })
      assert.equal("/srv/f", with({ "x", files = { "f" } }).files[1].path)
    end)

    it("is the command where none is given", function()
      assert.same({ "e", "1", "c" }, with({}).argv)
      assert.same({ "e", "1", "a" }, with({ args = { "a" } }).argv)
      assert.same({ "e", "1" }, with({ args = {} }).argv)
      assert.same({ "x" }, with({ "x" }).argv)
      assert.same({ "e", "1" }, image.entrypoint)
      raises("invalid", with, { args = "a" })
    end)
  end)

  describe("defaults", function()
    local defaults = options.defaults({
      cwd = "/src", env = { A = "1", B = "2" }, timeout = 5, hostname = "h", user = "nobody",
      limits = { memory = "1M", pids = 5 }, queue = true,
    }, "session")
    local function with(command)
      return options.spec(command, nil, { op = "run", defaults = defaults })
    end

    it("go under each run's own options", function()
      local spec, policy = with { "x" }
      assert.equal("/src", spec.cwd)
      assert.same({ A = "1", B = "2" }, spec.env)
      assert.equal(5.0, spec.timeout)
      assert.equal("nobody", spec.user)
      assert.is_true(policy.queue)
      assert.equal("/tmp", with({ "x", cwd = "/tmp" }).cwd)
      assert.is_nil(with({ "x", timeout = math.huge }).timeout)
    end)

    it("merge env and limits by name; false removes", function()
      assert.same({ A = "1", B = false, C = "3" }, with({ "x", env = { B = false, C = 3 } }).env)
      assert.same({ memory = 2, pids = 5 }, with({ "x", limits = { memory = 2 } }).limits)
      assert.same({ A = "1", B = "2" }, defaults.env)
    end)

    it("may be given again as they came out", function()
      assert.same(defaults, options.defaults(defaults, "session"))
    end)

    it("refuse what belongs to a single run", function()
      local problem = raises("invalid", options.defaults, { tag = "x" }, "session")
      assert.match('unknown option "tag"', problem.message)
      raises("invalid", options.defaults, { cwd = "x" }, "session")
      raises("invalid", options.defaults, "x", "session")
    end)
  end)
end)

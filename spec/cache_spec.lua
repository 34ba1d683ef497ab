local bough = require "bough"
local cache = require "bough.cache"
local core = require "bough.core"
local fake = require "spec.support.fake_engine"
local full = require "spec.support.fake_full"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("bough.cache", function()
  describe("encode", function()
    it("gives different texts for different values", function()
      local seen = {}
      for i, value in ipairs { "", "1", 1, 1.0, true, false, {}, { "" }, { {} }, { "a", "b" }, { "ab" },
        { a = "b" }, { "a", b = "c" }, { ["1"] = "a" }, { "a" }, { a = "b", c = "d" }, { a = { b = "c" } },
        "s1:a", { "s1:a" },
        { a = true }, { a = false }, { "as1:b" }, 1 << 53, 2.0 ^ 53 } do
        local text = cache.encode(value)
        assert.is_nil(seen[text], ("%s: %d and %s"):format(text, i, seen[text]))
        seen[text] = i
      end
    end)

    it("gives the same text however a table was filled", function()
      local a, b = {}, {}
      for i = 1, 50 do a["k" .. i] = i end
      for i = 50, 1, -1 do b["k" .. i] = i end
      assert.equal(cache.encode(a), cache.encode(b))
    end)
  end)

  local box, driver, base
  before_each(function()
    box, driver = fake.open(full)
    base = fake.base(box)
  end)
  after_each(function() box:close() end)

  local function cached(opts)
    opts.cache = true
    return base:run(opts)
  end

  describe("a run", function()
    it("is remembered, and its image comes back", function()
      local first = cached { shell = "echo x;write /a 1" }
      assert.is_false(first.cached)
      assert.is_false(first.result.cached)
      local second = cached { shell = "echo x;write /a 1" }
      assert.equal(first, second)
      assert.equal("succeeded", second.state)
      assert.is_true(second.cached)
      assert.is_true(second.result.cached)
      assert.equal("x\n", second.stdout)
      assert.equal(1, driver.calls.start)
      assert.match("exit 0 cached$", tostring(second))
      assert.is_true(rawequal(second, second:wait()))
      assert.equal("1", second:run("cat /a").stdout)
    end)

    it("without cache is none, and is not found later", function()
      assert.is_nil(base:run("echo x").cached)
      assert.is_nil(base:run("echo x").result.cached)
      assert.is_false(cached({ shell = "echo x" }).cached)
    end)

    it("that did not go well is run again", function()
      assert.is_false(cached({ shell = "exit 1" }).cached)
      assert.is_false(cached({ shell = "exit 1" }).cached)
      assert.is_false(cached({ shell = "sleep 9", timeout = 0.01 }).cached)
      assert.is_false(cached({ shell = "sleep 9", timeout = 0.01 }).cached)
    end)

    it("is the same whatever its tag, check, timeout and progress", function()
      local first = cached { shell = "echo x" }
      local second = cached { shell = "echo x", tag = "t", check = true, timeout = 5, on_progress = print }
      assert.is_true(second.cached)
      assert.equal("t", second.tag)
      assert.equal(first, box.images:get "t")
    end)

    it("is another one with whatever may change its outcome", function()
      local path = scratch.file "1"
      local keys = {}
      local function key(opts, from)
        opts.shell, opts.cache = opts.shell or "noop", true;
        (from or base):run(opts)
        assert.is_nil(keys[driver.last_key], "the same key")
        keys[driver.last_key] = true
      end
      key {}
      key({}, base:run "noop")
      for _, opts in ipairs { { shell = "noop " }, { env = { A = "1" } }, { env = { A = "2" } },
        { env = { A = false } }, { cwd = "/tmp" }, { user = "1" }, { hostname = "h" }, { network = "host" },
        { limits = { memory = "1M" } },
        { limits = { pids = 1 << 20 } }, { stdin = "x" }, { stdin = "y" }, { stdin = bough.file(path) },
        { stdout = false }, { stderr = false }, { stderr = core.STDOUT }, { truncate_output_at = 5 },
        { files = { a = { content = "1" } } }, { files = { a = { content = "2" } } },
        { files = { b = { content = "1" } } } } do
        key(opts)
      end
      scratch.file("2", path)
      key { stdin = bough.file(path) }
      scratch.file("1", path)
      assert.is_true(cached({ shell = "noop", stdin = { path = path } }).cached)
      assert.is_true(cached({ shell = "noop", cwd = "/" }).cached)
    end)

    it("that cannot be repeated from memory is refused, naming the option", function()
      local file <close> = io.tmpfile()
      for option, value in pairs { disposable = true, stdin = file, stdout = file, stderr = "err.log" } do
        local problem = raises("invalid", base.run, base, { shell = "noop", cache = true, [option] = value })
        assert.match("cache = true with .*" .. option, problem.message)
      end
      raises("invalid", base.run, base, { shell = "noop", cache = true, stdout = print })
      raises("invalid", base.run, base, { shell = "noop", cache = true, stdin = function() end })
      assert.is_nil(driver.calls.start)
    end)

    it("keeps nothing staged", function()
      for _ = 1, 2 do cached { shell = "cat /f", files = { f = { content = "x" } } } end
      assert.equal(1, driver.calls.start)
      assert.equal(0, driver.staged_open)
    end)
  end)

  describe("in a session", function()
    it("moves it as a run does", function()
      local one, two = base:session(), base:session()
      one:run { shell = "write /a 1", cache = true }
      local image = two:run { shell = "write /a 1", cache = true }
      assert.is_true(image.cached)
      assert.equal(one.uuid, two.uuid)
      assert.equal(2, #two:history())
      assert.equal("1", two:read "/a")
      assert.equal(0, two.exit_code)
      two:run { shell = "noop" } -- it is not busy
      local started = one:start { shell = "write /b 1", cache = true }
      started:wait()
      local again = base:session()
      again:run { shell = "write /a 1", cache = true }
      local hit = again:start { shell = "write /b 1", cache = true }
      assert.equal("executing", again.state)
      assert.equal(started, hit:wait())
      assert.equal(again.uuid, started.uuid)
    end)
  end)

  it("start gives a finished image", function()
    cached { shell = "echo x" }
    local image = base:start { shell = "echo x", cache = true }
    assert.equal("succeeded", image.state)
    assert.equal("x\n", image.stdout)
    image:close()
  end)
end)

describe("the run cache of the embedded engine", function()
  local box, base
  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
  end)
  teardown(function() box:close() end)

  it("gives the earlier image, until it is gone", function()
    local command = { shell = "date +%N >/when; cat /when", files = { x = { content = "1" } }, cache = true }
    local first = base:run(command)
    local second = base:run(command)
    assert.is_true(second.cached)
    assert.equal(first.stdout, second.stdout)
    assert.equal(first, second)
    box.images:remove(first.uuid)
    local third = base:run(command)
    assert.is_false(third.cached)
    assert.not_equal(first, third)
    box:gc()
    assert.is_false(base:run(command).cached)
  end)

  it("does not remember what went wrong", function()
    for _ = 1, 2 do assert.is_false(base:run({ shell = "exit 3", cache = true }).cached) end
  end)

  it("refuses a fifo as stdin, under the name of the method", function()
    local path = scratch.dir() .. "/fifo"
    scratch.sh("mkfifo " .. path)
    local problem = raises("invalid", base.run, base, { "cat", cache = true, stdin = bough.file(path) })
    assert.equal("run", problem.op)
    assert.match("regular file", problem.message)
  end)
end)

-- luacheck: ignore 512 (loops that are left at once are what is tested)

local safe = require "bough.safe"
local core = require "bough.core"
local fake = require "spec.support.fake_engine"
local full = require "spec.support.fake_full"

describe("bough.safe", function()
  local box, driver

  before_each(function()
    local _
    _, driver = fake.open(full)
    box = assert(safe.open "fake://")
  end)

  after_each(function() box:close() end)

  local function refused(kind, value, problem)
    assert.is_nil(value)
    assert.is_true(core.is_error(problem))
    assert.equal(kind, problem.kind)
    return problem
  end

  it("has everything that bough has", function()
    for name, value in pairs(require "bough") do
      assert.equal(type(value), type(safe[name]), name)
    end
    assert.equal(require("bough").PIPE, safe.PIPE)
  end)

  describe("open", function()
    it("returns nil and the error", function()
      refused("unsupported", safe.open "ftp://x")
      refused("invalid", safe.open(5))
    end)
  end)

  describe("methods", function()
    it("return nil and the error, also for wrong use", function()
      local base = assert(fake.base(box))
      refused("not_found", box.images:get "nonesuch")
      refused("invalid", base:run { "x", timout = 1 })
      refused("exit", base:run("exit 1", { check = true }))
      refused("not_found", base:read "/nonesuch")
    end)

    it("wrap what they return, however deep", function()
      local base = assert(fake.base(box))
      local done = base:run "echo x;write /a 1"
      refused("not_found", done:read "/nonesuch")
      assert.equal("1", done:read "/a")
      assert.equal("x\n", done.stdout)
      assert.equal("x\n", done.result.stdout)
      refused("invalid", base:children()[1]:run {})
      refused("not_found", done:parent():read "/nonesuch")
      local session = base:session()
      session:run "noop"
      refused("invalid", session:history()[2].image:run {})
      refused("state", session:rollback(5))
      assert.equal(session, session:rollback())
      refused("invalid", box.images { number = 0 })
      refused("invalid", box.images({ number = 1 })[1]:run {})
    end)

    it("take wrapped objects as arguments", function()
      local base = assert(fake.base(box))
      local session = base:session()
      session:run "noop"
      assert.equal(session, session:checkout(base))
      assert.equal(base.uuid, session.uuid)
      assert.equal(1, #box.images:list { parent = base })
    end)
  end)

  describe("fields", function()
    it("read as nil where there is no value yet", function()
      local base = assert(fake.base(box))
      assert.is_nil(base.stdout)
      assert.is_nil(base:session().result)
      assert.equal("busybox", base.tag)
    end)

    it("compare and print as the objects do", function()
      local base = assert(fake.base(box))
      assert.equal(base, box.images:get "busybox")
      assert.match("^image ", tostring(base))
    end)
  end)

  describe("iterators", function()
    it("yield wrapped objects", function()
      local base = assert(fake.base(box))
      base:run "noop"
      local count = 0
      for image in box.images:iter() do
        refused("invalid", image:run {})
        count = count + 1
      end
      assert.equal(2, count)
    end)
  end)

  describe("files", function()
    it("are put in place, or return nil and the error", function()
      refused("invalid", safe.file "")
      refused("invalid", safe.dir(5))
      refused("invalid", safe.bytes("", { mode = 644 }))
      refused("invalid", safe.symlink(nil))
      local base = assert(fake.base(box))
      refused("invalid", base:run { shell = "noop", files = { 5 } })
      refused("not_found", base:apply_files(safe.file "/nonesuch"))
      local told = 0
      local image = assert(base:apply_files({ ["/x"] = safe.bytes "data" }, {
        on_progress = function() told = told + 1 end,
      }))
      assert.equal("data", image:read "/x")
      assert.is_true(told > 0)
      local uploaded = assert(box.files:upload(safe.bytes "up"))
      assert.equal("up", base:run({ shell = "noop", files = { ["/u"] = uploaded } }):read "/u")
      refused("invalid", box.files:upload(5))
      refused("invalid", box.files:exists "x")
    end)
  end)

  describe("looking into images", function()
    it("returns nil and the error, before a loop too", function()
      local base = assert(fake.base(box))
      refused("not_found", base:walk "/nonesuch")
      refused("not_found", base:stream "/nonesuch")
      refused("not_found", base:stat "/nonesuch")
      refused("invalid", base:find { kind = 5 })
      refused("invalid", base:glob(5))
      refused("invalid", base:grep "a\nb")
      refused("invalid", base:diff(5))
      refused("invalid", box:tree { max = 0 })
      refused("not_found", base:download("/nonesuch", "/tmp"))
    end)

    it("wraps entries, and closes what a loop leaves", function()
      local base = assert(fake.base(box))
      for entry in base:walk "/" do
        refused("not_found", base:read "/nonesuch")
        assert.equal("/etc", entry.full_path)
        refused("not_found", entry:read())
        break
      end
      assert.equal(0, driver.looks_open)
      assert.equal("hello\n", base:find({ name = "motd" })[1]:read())
      assert.equal("/etc/motd:1: hello", tostring(base:grep("hello").matches[1]))
      local image = base:run "write /x 1"
      assert.equal("A /x\n", tostring(image:diff(base)))
      assert.equal("A /x", tostring(image:diff(base)[1]))
      for _ in base:stream "/etc/motd" do break end
      assert.equal(0, driver.streams_open)
    end)
  end)

  describe("operators and assignments", function()
    it("raise, as a mistake in the program", function()
      assert.is_false(pcall(function() return safe.host "ls" | 5 end))
      local base = assert(fake.base(box))
      assert.is_false(pcall(function() base.tag = "x" end))
    end)

    it("leave commands with nil and the error", function()
      local process = assert(safe.host({ "cat", input = "data" }):start())
      refused("invalid", safe.host { "cat", stdin = process })
      assert.equal("data", process:read "a")
      assert.is_true(process:wait().ok)
    end)
  end)

  describe("closing", function()
    it("passes through", function()
      local base = assert(fake.base(box))
      do
        local session <close> = base:session()
        session:start "sleep 60"
        assert.equal(1, driver.live)
      end
      assert.equal(0, driver.live)
      do
        local nothing <close> = base:run {}
        assert.is_nil(nothing)
      end
    end)
  end)

  describe("tasks", function()
    it("hand wrapped objects to functions and back", function()
      local base = assert(fake.base(box))
      local done = assert(safe.run(function(image)
        refused("invalid", image:run {})
        return image:run "echo x"
      end, base))
      assert.equal("x\n", done.stdout)
      refused("not_found", done:read "/nonesuch")
    end)

    it("return a task's error", function()
      local value, problem = safe.run(function() error "mine" end)
      assert.is_nil(value)
      assert.match("mine", tostring(problem))
    end)

    it("end at a deadline, which returns it", function()
      local base = assert(fake.base(box))
      local turns = 0
      refused("timeout", safe.deadline(0.02, function()
        while true do
          base:run "sleep 60"
          turns = turns + 1
        end
      end))
      assert.equal(0, turns)
      assert.equal("x\n", safe.deadline(5, function() return base:run "echo x" end).stdout)
    end)

    it("end when they are cancelled, though every call returns", function()
      local base = assert(fake.base(box))
      local task = safe.spawn(function()
        while true do base:run "sleep 60" end
      end)
      safe.sleep(0.01)
      task:cancel()
      refused("cancelled", task:wait())
      assert.equal(0, driver.live)
    end)
  end)
end)

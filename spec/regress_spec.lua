-- One test for each bug that once got through.

local bough = require "bough"
local core = require "bough.core"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("regress", function()
  local box, base

  before_each(function()
    box = bough.open { home = scratch.store() }
    base = box.images:use "busybox"
  end)

  after_each(function() box:close() end)

  it("a state may close right after open, with work on other threads under way", function()
    local script = scratch.file(("local bough = require 'bough'\nlocal e = bough.open { home = %q }\n")
      :format(scratch.store()))
    assert.equal("", scratch.sh("timeout 20 lua5.4 " .. script))
  end)

  it("a run under a memory limit that changes something leaves its image", function()
    local image = base:run { shell = "echo kept > /kept", limits = { memory = "64M" } }
    assert.equal("kept\n", image:read "/kept")
  end)

  it("two tasks may wait for a run whose output goes to a function that waits", function()
    local run = base:start { shell = "echo out", stdout = function() bough.sleep(0.1) end }
    local codes = bough.run(function()
      return bough.deadline(20, bough.all, {
        function() return run:wait().exit_code end, function() return run:wait().exit_code end,
      })
    end)
    assert.same({ 0, 0, n = 2 }, codes)
  end)

  it("stdin that cannot be read is an error, not an early end", function()
    local problem = raises("invalid", base.run, base, { "wc", "-c", stdin = bough.file "/tmp" })
    assert.match("stdin", tostring(problem))
  end)

  it("a fifo without a writer as stdin does not hold up the loop", function()
    local fifo = scratch.dir "fifo" .. "/f"
    scratch.sh("mkfifo " .. fifo)
    local image = base:run { "cat", stdin = bough.file(fifo), timeout = 0.2 }
    assert.is_true(image.timed_out)
  end)

  it("a command that ended in time is not called late because its layer took long", function()
    local image = base:run { shell = "for i in $(seq 3000); do echo $i > /tmp/$i; done; exit 3",
      limits = { disk = "64M" } }
    local elapsed = image.elapsed_time
    for _ = 1, 3 do
      local again = base:run { shell = "for i in $(seq 3000); do echo $i > /tmp/$i; done; exit 3",
        limits = { disk = "64M" }, timeout = elapsed * 1.3 + 0.02 }
      assert.equal(again.timed_out and 137 or 3, again.exit_code)
      assert.equal(again.timed_out, again.signal == 9)
    end
  end)

  it("a commit that is under way when the engine closes makes a whole image or none", function()
    local home = scratch.store()
    for delay = 0, 8 do
      local e = bough.open { home = home }
      local from = e.images:use "busybox"
      local run = from:start { shell = "for i in $(seq 400); do echo $i > /tmp/$i; done", tag = "t" .. delay }
      bough.run(function() bough.sleep(delay * 0.01) end)
      e:close()
      assert.is_false(pcall(run.read, run, "/tmp/1"))
    end
    local e <close> = bough.open { home = home }
    for _, image in ipairs(e.images:list { tagged = true }) do
      if image.tag ~= "busybox" then
        assert.equal(400, #image:ls "/tmp")
      end
    end
  end)

  it("a keeper without its nursery ends, in one line, and takes nothing along", function()
    local pid = box:info().keeper_pid
    scratch.sh(("for p in $(cat /proc/%d/task/%d/children); do"
      .. " grep -qx bough-nursery /proc/$p/comm && kill -9 $p; done; true"):format(pid, pid))
    local ok, problem
    for _ = 1, 50 do
      ok, problem = pcall(base.run, base, { "true" })
      if not ok then break end
    end
    assert.is_false(ok)
    assert.is_true(problem.kind == "closed" or problem.kind == "io", tostring(problem))
  end)

  it("more runs than the keeper has descriptors fail one by one, and the rest go on", function()
    local script = scratch.file(([[
      local bough = require "bough"
      local box <close> = bough.open { home = %q }
      local base = box.images:use "busybox"
      local fns = { settle = true }
      for i = 1, 150 do fns[i] = function() return base:run { shell = "sleep 0.3; cat", stdin = "x" } end end
      local good = 0
      for _, outcome in ipairs(bough.all(fns)) do
        if outcome.ok then good = good + 1 end
      end
      print(good > 0 and base:run { "true" }.exit_code or "none")
    ]]):format(scratch.store()))
    assert.equal("0\n", scratch.sh("ulimit -n 400; timeout 60 lua5.4 " .. script))
  end)

  it("a line in passwd that has too few fields does not hide the users after it", function()
    local image = base:run { shell = "printf 'odd:x:5:5\\nbob:x:77:77::/:/bin/sh\\n' >> /etc/passwd" }
    local result = image:run { "id", "-u", user = "bob", check = false }
    assert.equal("77\n", result.stdout)
  end)

  it("a search in an image that is gone raises instead of waiting for ever", function()
    local image = base:run { shell = "echo > /x" }
    image:remove()
    raises("not_found", bough.deadline, 10, image.find, image, { path = "/" })
    raises("not_found", bough.deadline, 10, image.grep, image, "x")
  end)

  it("the keeper takes no destination with .. in it, whoever asks", function()
    local driver <close> = core.open_local { home = scratch.store() }
    local row = driver:import("busybox"):wait()
    raises("invalid", driver.stage, driver, { { path = "/../../escaped", content = "x" } })
    raises("invalid", driver.stage, driver, { { path = "/a//b", content = "x" } })
    assert.is_string(row.uuid)
  end)

  it("files that cannot be put in place fail cleanly, many at a time", function()
    for _ = 1, 20 do
      raises("exists", base.apply_files, base, { ["/bin"] = bough.bytes "x" })
      raises("exists", base.run, base, { "true", files = { ["/bin"] = bough.bytes "x" } })
    end
  end)

  it("two readers of one stream get no piece twice", function()
    local driver <close> = core.open_local { home = scratch.store() }
    local row = driver:import("busybox"):wait()
    local stream <close> = driver:open(row.uuid, "/bin/busybox")
    local got, busy = 0, 0
    local function reader()
      while true do
        local good, piece = pcall(stream.read, stream, 4096)
        if not good then
          assert.is_true(bough.is_error(piece) and piece.kind == "busy")
          busy = busy + 1
          bough.sleep(0.001)
        elseif not piece then
          return
        else
          got = got + #piece
        end
      end
    end
    bough.run(function() bough.all { reader, reader } end)
    assert.equal(stream.size, got)
    assert.is_true(busy > 0)
  end)

  it("a state that closes with work at the keeper keeps no descriptor of it", function()
    local script = scratch.file(([[
      local core = require "bough.core"
      local e = core.open_local { home = %q }
      local row = e:import("busybox"):wait()
      jobs = { e:save(row.uuid, "/bin/busybox", %q), e:look(row.uuid, { "list", "--path", "/" }) }
      core.step(0.01)
    ]]):format(scratch.store(), scratch.dir() .. "/out"))
    assert.equal("", scratch.sh("timeout 20 lua5.4 " .. script))
  end)
end)

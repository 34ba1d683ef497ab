-- One test for each bug of live processes that once got through.

local bough = require "bough"
local core = require "bough.core"
local host = require "bough.host"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local function collect()
  collectgarbage()
  collectgarbage()
end

describe("regress, live:", function()
  local box, base, instance

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
    instance = base:boot()
  end)

  teardown(function() box:close() end)

  it("an instance that is closed while it is committed gives the whole image or none", function()
    local many <close> = base:boot()
    assert.equal(0, many:exec "cd /tmp; i=0; while [ $i -lt 3000 ]; do echo $i >f$i; i=$((i+1)); done":wait())
    bough.run(function()
      local commit = bough.spawn(many.commit, many, { tag = "whole" })
      -- it is under way once the processes stand still; close comes somewhere in the middle
      bough.sleep(0.05)
      many:close()
      local good, image = pcall(commit.wait, commit)
      if good then assert.equal(3000, #image:ls "/tmp") else assert.is_true(bough.is_error(image)) end
    end)
  end)

  it("background children that go on writing do not hold up whoever waits for the end", function()
    local process = host.popen { "sh", "-c", "while :; do echo y; done & echo $!; exit 0", stdout = true }
    assert.equal(0, process:wait())
    local pid = process.result.stdout:match "^(%d+)\n" or process.result.stdout:match "\n(%d+)\n"
    scratch.sh("kill " .. pid)
  end)

  it("a host that does not listen keeps no time limit from being kept", function()
    local late = instance:exec({ "sleep", "60", timeout = 0.2 }, nil, { eager = true })
    local others = {}
    for i = 1, 300 do others[i] = instance:exec({ "true" }, nil, { eager = true }) end
    local from = core.now()
    while core.now() - from < 1.5 do end -- busy
    assert.equal(137, late:wait())
    assert.is_true(late.timed_out)
    assert.is_true(late.result.elapsed_time < 1.2, late.result.elapsed_time)
    for _, process in ipairs(others) do assert.equal(0, process:wait()) end
  end)

  it("an instance that ends with the ends of many processes untold tells them all", function()
    local short <close> = base:boot()
    local all = {}
    for i = 1, 400 do all[i] = short:exec({ "sleep", "100" }, nil, { eager = true }) end
    short:stop(0)
    for _, process in ipairs(all) do assert.equal(137, process:wait()) end
  end)

  it("whoever holds a stream, or an iterator over one, holds its process", function()
    local count = 0
    for _ in instance:exec { "seq", "20000" }.stdout:lines() do
      count = count + 1
      if count % 5000 == 0 then collect() end
    end
    assert.equal(20000, count)
    local reader = instance:exec("sleep 0.1; echo precious").stdout
    collect()
    bough.sleep(0.05)
    collect()
    assert.equal("precious\n", reader:read "a")
    local last = instance:exec { "tail", "-n", "1", stdin = instance:exec("sleep 0.1; seq 1000").stdout }
    collect()
    assert.equal("1000\n", last.stdout:read "a")
  end)

  it("an engine closes although processes nobody held have been collected", function()
    local own <close> = bough.open(scratch.store())
    local image = own.images:use "busybox"
    assert.equal("hi\n", image:popen("echo hi").stdout:read "a")
    image:popen "sleep 100"
    image:session():popen "sleep 100"
    collect()
  end)

  it("functions are called while somebody reads another stream, and raise from wait", function()
    local given = 0
    local cat = instance:exec { "cat", stdin = function()
      given = given + 1
      return given < 3 and "x\n" or nil
    end }
    assert.equal("x\nx\n", cat.stdout:read "a")
    local heard = 0
    local both = instance:exec { shell = "head -c 1000000 /dev/zero >&2; echo out",
      stderr = function(chunk) heard = heard + #chunk end }
    assert.equal("out\n", both.stdout:read "a")
    assert.equal(0, both:wait())
    assert.equal(1000000, heard)
    local bad = instance:exec { shell = "echo x; sleep 100", stdout = function() error("boom", 0) end }
    for _ = 1, 2 do
      local good, problem = pcall(bad.wait, bad)
      assert.same({ false, "boom" }, { good, problem })
    end
  end)

  it("a session is free when its processes are over, though nobody has waited for them", function()
    local session <close> = base:session()
    session:popen "true"
    os.execute "sleep 0.3"
    assert.equal(0, session:run("true").exit_code)
    pcall(function()
      for _ in session:popen("yes").stdout:lines() do error "leave" end
    end)
    collect()
    assert.equal(0, session:run("true").exit_code)
    local process <close> = session:popen "sleep 100"
    assert.match('is running "sleep 100"', raises("busy", session.run, session, "true").message)
    process:kill()
  end)

  it("a process that its sandbox's time limit has ended says so, and a commit waits for the end", function()
    local short <close> = base:boot { timeout = 0.2 }
    local process = short:exec "echo 1 >/x; sleep 100"
    assert.equal(137, process:wait())
    assert.is_true(process.timed_out)
    assert.equal("1\n", short:commit():read "/x")
    assert.same({ true, "stopped" }, { short.timed_out, short.state })
  end)

  it("what is closed above a process kills it, and it tells that in one way", function()
    local session = base:session()
    local of_session = session:popen "sleep 100"
    session:close()
    assert.equal(137, of_session:wait())
    local other = base:boot()
    local of_instance = other:exec "sleep 100"
    other:close()
    assert.equal(137, of_instance:wait())
    local own = bough.open(scratch.store())
    local of_engine = own.images:use("busybox"):popen "sleep 100"
    own:close()
    assert.equal(137, of_engine:wait())
    for _, process in ipairs { of_session, of_instance, of_engine } do
      assert.same({ nil, "signal", 9 }, { process:close() })
    end
  end)

  it("an instance that is being stopped takes no more processes", function()
    local own <close> = base:boot()
    local stubborn = own:exec "trap '' TERM; echo ready; while :; do sleep 1; done"
    assert.equal("ready", stubborn.stdout:read())
    bough.run(function()
      local stop = bough.spawn(own.stop, own, 100)
      bough.sleep(0.05)
      assert.equal("stopping", own.state)
      raises("closed", own.exec, own, "true")
      stubborn:kill()
      stop:wait()
    end)
    assert.equal("stopped", own.state)
  end)

  it("a session goes back as soon as its last process has ended", function()
    local session <close> = base:session()
    local from = session.uuid
    session:popen("echo x >/x"):wait()
    local process = session:popen "echo y >/y"
    while not process:poll() do bough.sleep(0.001) end
    session:rollback(2)
    assert.equal(from, session.uuid)
  end)

  it("functions that get many short lines let other tasks run", function()
    bough.run(function()
      local ticks, lines = 0, 0
      local ticker = bough.spawn(function()
        while true do
          bough.sleep(0)
          ticks = ticks + 1
        end
      end);
      (instance:cmd { "seq", "100000" }):to(function() lines = lines + 1 end, { text = "lines" })
      ticker:cancel()
      assert.equal(100000, lines)
      assert.is_true(ticks >= 10, ticks)
    end)
  end)

  it("an error is one line, whatever the caller named", function()
    local problem = raises("not_found", instance.exec, instance, { "a\nb\27[31m" })
    assert.is_nil(tostring(problem):find "%c")
  end)
end)

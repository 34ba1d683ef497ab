--- What readers with fresh eyes have found in the ConTree engine and in `bough serve`: once each, so that it stays
-- mended.

local bough = require "bough"
local core = require "bough.core"
local fixture = require "spec.engine.fixture"
local follow = require "bough.contree.follow"
local raises = require "spec.support.raises"
local serve_process = require "spec.support.serve_process"
local serving = require "spec.support.serving"

describe("on ConTree", function()
  after_each(serve_process.stop_all)

  it("whoever reads from a process that is lost is told, and does not take it for the end", function()
    local before = follow.times.patience
    follow.times.patience = 0.5
    local server = serve_process.start()
    local box <close> = server:open()
    local process = box.images:use "busybox":popen "echo part; sleep 900; echo rest"
    assert.equal("part", process.stdout:read())
    server:stop()
    raises("transport", process.stdout.read, process.stdout, "a")
    raises("transport", process.wait, process)
    follow.times.patience = before
  end)

  it("whoever waits for a process when the engine is closed is told that", function()
    local box = serve_process.start():open()
    local instance = box.images:use "busybox":boot()
    local process = instance:exec "echo ready; sleep 900"
    assert.equal("ready", process.stdout:read())
    local waiter = bough.spawn(pcall, process.wait, process)
    for _ = 1, 10 do bough.step(0) end
    box:close()
    local good, problem = waiter:wait()
    assert.is_true(good and problem == 137 or problem.kind == "closed", tostring(problem))
  end)

  it("an instance that does nothing is no task: a host's loop comes to its end", function()
    local box <close> = serve_process.start():open()
    local instance <close> = box.images:use "busybox":boot()
    fixture.until_true("a loop without tasks", function() return not bough.step(0) end)
    assert.equal(0, instance:exec("true"):wait())
  end)

  it("files are not sent for a run that will be refused", function()
    local asked = 0
    local box <close> = serve_process.start():open { log = function() asked = asked + 1 end }
    local base = box.images:use "busybox"
    local before = asked
    for _, method in ipairs { "run", "start", "popen" } do
      raises("unsupported", base[method], base, { "true", pty = true, files = { ["/f"] = bough.bytes "content" } })
    end
    raises("unsupported", base.boot, base, { network = "host", files = { ["/f"] = bough.bytes "content" } })
    assert.equal(before, asked)
  end)
end)

describe("bough serve", function()
  local server

  local function start(opts)
    server = serving.start(opts)
    return server
  end

  after_each(function()
    if server then server:stop() end
    server = nil
  end)

  it("lets a token for disposable runs change no other run", function()
    start { tokens = {
      { name = "all", token = "token-of-one-who-may-all" },
      { name = "some", token = "token-of-one-who-may-less", permissions = { list = true, spawn_disposable = true } },
    } }
    local image = server:image "busybox"
    local function spawn(disposable)
      local id = server:post("/instances", { json = { image = image, command = "sleep", args = { "900" },
        disposable = disposable } }).json.uuid
      fixture.until_true("its start", function() return server:get("/operations/" .. id).json.status == "EXECUTING" end)
      return "/operations/" .. id .. "/subprocesses"
    end
    local less = "token-of-one-who-may-less"
    local kept, thrown = spawn(false), spawn(true)
    local exec = { command = "true" }
    assert.equal(403, server:post(kept, { json = exec, token = less }).status)
    assert.equal(403, server:post(kept .. "/1/stdin", { json = { value = "x" }, token = less }).status)
    assert.equal(403, server:delete(kept .. "/1?signal=KILL", { token = less }).status)
    assert.equal(200, server:get(kept .. "/1", { token = less }).status)
    assert.equal(201, server:post(thrown, { json = exec, token = less }).status)
    assert.equal(201, server:post(kept, { json = exec }).status)
  end)

  it("does not take input without end that nobody reads", function()
    start()
    local id = server:post("/instances", { json = { image = server:image "busybox", command = "sleep", args = { "900" },
      disposable = true, stdin = { value = "", close = false } } }).json.uuid
    local path = ("/operations/%s/subprocesses/1/stdin"):format(id)
    fixture.until_true("its start", function() return server:get("/operations/" .. id).json.status == "EXECUTING" end)
    local piece = { value = ("x"):rep(3 << 20), close = false }
    local tasks = {}
    for i = 1, 8 do tasks[i] = core.spawn(function() return server:post(path, { json = piece }).status end) end
    fixture.until_true("a refusal", function()
      for _, task in ipairs(tasks) do
        if task.status == "done" then return task:wait() == 429 end
      end
    end)
    server:delete("/operations/" .. id)
    local refused = 0
    for _, task in ipairs(tasks) do
      local status = task:wait()
      if status == 429 then refused = refused + 1 else assert.equal(409, status) end
    end
    assert.is_true(refused >= 5, refused .. " refused")
  end)
end)

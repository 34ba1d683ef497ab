--- The command `bough`.

local cjson = require "cjson"
local core = require "bough.core"
local host = require "bough.host"
local lfs = require "lfs"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"

local LUA = arg and arg[-1] or "lua5.4"
local TOKEN = "a-token-for-the-command"

local function absolute(path) return path:find "^/" and path or lfs.currentdir() .. "/" .. path end

local BUILD = absolute(os.getenv "BOUGH_BUILD" or "build")

-- The command with these arguments, from the tree.
local function tree(...) return { "env", "BOUGH_BUILD=" .. BUILD, LUA, absolute "bin/bough", ... } end

-- Runs it to its end.
local function run(...)
  local process <close> = host.popen(tree(...))
  local out, err = process:communicate(nil, 60)
  return process.returncode, out, err
end

local Served = {}
Served.__index = Served

-- Starts `bough serve` with a store of its own, and reads what it prints first.
local function serve(...)
  local self = setmetatable({ log = scratch.dir "log" .. "/log", home = scratch.store() }, Served)
  local arguments = { "serve", "--home", self.home, "--port", "0", "--log", self.log, ... }
  self.process = host.popen(tree(table.unpack(arguments)))
  self.http = core.http()
  local first = self.process.stdout:read "l"
  self.home_shown, self.url = (first or ""):match "^bough serves (.-) at (%S+)$"
  if not self.url then
    local _, err = self.process:communicate(nil, 10)
    self:close()
    error(("it did not start: %s %s"):format(first, err), 2)
  end
  return self
end

function Served:close()
  self.http:close()
  self.process:kill "KILL"
  self.process:wait()
end

function Served:request(method, path, token, body, http)
  local answer = (http or self.http):request {
    url = self.url .. "/v1" .. path, method = method, bearer = token or TOKEN, body = body,
    timeout = 30,
  }
  answer.json = answer.body ~= "" and cjson.decode(answer.body) or nil
  return answer
end

function Served:events()
  local events = {}
  for line in io.lines(self.log) do events[#events + 1] = cjson.decode(line) end
  return events
end

-- Waits until the log has an event of this name.
function Served:logged(name)
  for _ = 1, 400 do
    for _, event in ipairs(lfs.attributes(self.log) and self:events() or {}) do
      if event.event == name then return event end
    end
    core.sleep(0.025)
  end
  error("no event " .. name .. " in the log")
end

describe("bough", function()
  it("tells its version and its use", function()
    local code, out = run "--version"
    assert.equal(0, code)
    assert.matches("^bough %S+ %(Lua 5%.4%)\n$", out)
    for _, arguments in ipairs { { "--help" }, { "-h" }, { "help" } } do
      code, out = run(table.unpack(arguments))
      assert.equal(0, code)
      assert.matches("^Usage: bough COMMAND", out)
    end
    for _, arguments in ipairs { { "serve", "--help" }, { "serve", "--port", "1", "-h" } } do
      code, out = run(table.unpack(arguments))
      assert.equal(0, code)
      assert.matches("^Usage: bough serve", out)
      for line in out:gmatch "[^\n]+" do assert.is_true(#line <= 90, line) end
    end
  end)

  it("says in one line what is wrong with its use, and ends with 2", function()
    local tokens = scratch.file "[ci]\ntoken = abc\npermissions = list, spwan\n"
    scratch.sh("chmod 600 " .. scratch.quote(tokens))
    for wanted, arguments in pairs {
      ["which command"] = {}, ['unknown command "srve"'] = { "srve" },
      ["unknown option --prot: did you mean --port"] = { "serve", "--prot", "1" },
      ["--port needs a value"] = { "serve", "--port" }, ['--port needs a number, got "x"'] = { "serve", "--port=x" },
      ["--home is given twice"] = { "serve", "--home", "a", "--home", "b" },
      ['unexpected argument "more"'] = { "serve", "more" },
      ["--limit x: write NAME=VALUE"] = { "serve", "--limit", "x" },
      ['--limit: unknown limit "instance_max": did you mean "instance_max_'] = {
        "serve", "--limit", "instance_max=1" },
      ['--limit: unknown limit "memory": did you mean "instance_memory"?'] = { "serve", "--limit=memory=1G" },
      ['--limit: unknown limit "foo": known are instance_max_concurrency,'] = { "serve", "--limit", "foo=1" },
      [('token file "%s", line 3, section [ci]: unknown permission "spwan": did you mean "spawn"?'):format(tokens)] = {
        "serve", "--token-file", tokens },
      ['address must be numeric, such as "0.0.0.0" or "::", or "localhost"; got "example.com"'] = {
        "serve", "--address", "example.com", "--token", TOKEN },
      ['got "127.1"'] = { "serve", "--address", "127.1" },
      ["it needs TLS"] = { "serve", "--address", "0.0.0.0", "--token", TOKEN },
      ["--token and --token-file exclude"] = { "serve", "--token", "x", "--token-file", "y" },
      ["network"] = { "serve", "--network", "nat" },
    } do
      local code, out, err = run(table.unpack(arguments))
      assert.equal(2, code, err)
      assert.equal("", out)
      assert.is_not_nil(err:find(wanted, 1, true), err)
      assert.matches("^bough: [^\n]+\n$", err)
    end
  end)

  it("says in one line what went wrong, and ends with 1", function()
    local open = scratch.file "[a]\ntoken = abc"
    for wanted, arguments in pairs {
      ["no such file"] = { "serve", "--token-file", "/nowhere" },
      ["chmod 600"] = { "serve", "--token-file", open },
      ["/nowhere/log"] = { "serve", "--log", "/nowhere/log" },
      ["cert"] = { "serve", "--cert", "/nowhere", "--key", "/nowhere" },
    } do
      local code, out, err = run(table.unpack(arguments))
      assert.equal(1, code, err)
      assert.equal("", out)
      assert.is_not_nil(err:find(wanted, 1, true), err)
      assert.matches("^bough: [^\n]+\n$", err)
    end
  end)
end)

describe("bough serve", function()
  it("makes a token, shows it once, and ends on SIGTERM with all in the log", function()
    local served = serve("--image", "busybox", "--base-path", "/sandboxes")
    finally(function() served:close() end)
    assert.equal(served.home, served.home_shown)
    assert.matches("^http://127%.0%.0%.1:%d+/sandboxes$", served.url)
    local reader = served.process.stdout
    assert.equal("", reader:read "l")
    assert.equal(("  export CONTREE_URL='%s'"):format(served.url), reader:read "l")
    local token = reader:read("l"):match "^  export CONTREE_TOKEN=(%x+)$"
    assert.equal(64, #token)
    assert.equal("busybox", served:request("GET", "/images?tag=busybox", token).json.images[1].tag)
    assert.equal(401, served:request("GET", "/whoami").status)
    served.process:kill "TERM"
    assert.equal(0, served.process:wait(30))
    local events = served:events()
    assert.equal("start", events[1].event)
    assert.equal("stop", events[#events].event)
    local seen = {}
    for _, event in ipairs(events) do seen[event.event] = seen[event.event] or event end
    assert.equal("generated", seen.request.token)
    assert.equal("unknown token", seen.denied.reason)
    assert.is_nil(cjson.encode(events):find(token, 1, true))
  end)

  it("does not show a token that was given, and ends on SIGINT", function()
    local served = serve("--token", TOKEN)
    finally(function() served:close() end)
    assert.equal(200, served:request("GET", "/whoami").status)
    served.process:kill "INT"
    local out = served.process:communicate(nil, 30)
    assert.equal("", out)
    assert.equal(0, served.process.returncode)
  end)

  it("lets what runs end within its grace, and cancels the rest", function()
    local served = serve("--token", TOKEN, "--image", "busybox", "--grace", "60")
    finally(function() served:close() end)
    local function spawn(line)
      return served:request("POST", "/instances", TOKEN, cjson.encode {
        command = line, shell = true, image = "tag:busybox", disposable = true,
      }).json.uuid
    end
    assert.is_string(spawn "sleep 1")
    served.process:kill "TERM"
    assert.equal(0, served.process:wait(30), "waits for a short one")
    served:close()

    served = serve("--token", TOKEN, "--image", "busybox", "--grace", "60")
    assert.is_string(spawn "sleep 600")
    local began = core.now()
    served.process:kill "TERM"
    assert.is_false((pcall(served.process.wait, served.process, 0.5)))
    served.process:kill "TERM" -- once more: at once
    assert.equal(0, served.process:wait(30))
    assert.is_true(core.now() - began < 30)
  end)

  it("opens its log anew on SIGHUP", function()
    local served = serve("--token", TOKEN)
    finally(function() served:close() end)
    served:request("GET", "/whoami")
    served:logged "request"
    os.rename(served.log, served.log .. ".1")
    served.process:kill "HUP"
    for _ = 1, 400 do
      if lfs.attributes(served.log) then break end
      core.sleep(0.025)
    end
    served:request("GET", "/images")
    assert.equal("/v1/images", served:logged("request").path)
  end)

  it("takes TLS and a token file", function()
    local dir = scratch.dir "tls"
    registry.certificate(dir)
    local file = scratch.file("[team]\ntoken = a-token-in-a-file\npermissions = list\n")
    scratch.sh("chmod 600 " .. file)
    local served = serve("--address", "0.0.0.0", "--cert", dir .. "/cert.pem", "--key", dir .. "/key.pem",
      "--token-file", file, "--limit", "instance_max_timeout=60", "--limit=upload_max_bytes=1M")
    finally(function() served:close() end)
    local http <close> = core.http { ca_file = dir .. "/cert.pem" }
    served.url = served.url:gsub("0%.0%.0%.0", "127.0.0.1")
    local who = served:request("GET", "/whoami", "a-token-in-a-file", nil, http).json
    assert.is_true(who.permissions.list)
    assert.is_false(who.permissions.spawn)
    assert.equal(60, who.limits.instance_max_timeout)
    assert.equal(1 << 20, who.limits.upload_max_bytes)
  end)

  it("says when its port or its store is taken", function()
    local served = serve("--token", TOKEN)
    finally(function() served:close() end)
    local code, _, err = run("serve", "--home", scratch.store(), "--port", served.url:match ":(%d+)$")
    assert.equal(1, code)
    assert.matches("^bough: [^\n]*in use[^\n]*\n$", err)
    code, _, err = run("serve", "--home", served.home, "--port", "0")
    assert.equal(1, code)
    assert.matches("^bough: [^\n]+\n$", err)
    assert.is_not_nil(err:find(served.home, 1, true))
  end)

  it("works where it was installed", function()
    local prefix = scratch.dir "installed"
    -- what `make install` does, without asking for the libraries again
    local lua, lib, bin = prefix .. "/share/lua", prefix .. "/lib/lua", prefix .. "/bin"
    scratch.sh(("mkdir -p %s %s %s && cp -r lua/. %s/ && cp -r %s/bough %s/"):format(lua, lib, bin, lua, BUILD, lib))
    scratch.sh(("sed -e '1s|.*|#!%s|' -e 's|@LUADIR@|%s|' -e 's|@LIBDIR@|%s|' bin/bough >%s/bough")
      :format(LUA:find "/" and LUA or "/usr/bin/env " .. LUA, lua, lib, bin))
    scratch.sh(("chmod 755 %s/bough"):format(bin))
    local process <close> = host.popen {
      "env", "-u", "LUA_PATH", "-u", "LUA_CPATH", "-u", "BOUGH_BUILD", bin .. "/bough", "serve", "--home",
      scratch.store(), "--port", "0", "--token", TOKEN, cwd = "/",
    }
    local url = process.stdout:read("l"):match "at (%S+)$"
    local http <close> = core.http()
    assert.equal(200, http:request({ url = url .. "/v1/whoami", bearer = TOKEN }).status)
    process:kill "TERM"
    assert.equal(0, process:wait(30))
  end)
end)

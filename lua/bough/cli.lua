--- The command `bough`.

local M = {}

local VERSION = "0.1"

local USAGE = [[
Usage: bough COMMAND [OPTIONS]

  bough serve      serve the local store behind the REST API of ConTree
  bough --version
  bough --help     `bough serve --help` tells its options
]]

local SERVE = [[
Usage: bough serve [OPTIONS]

Serves the local store behind the REST API of ConTree until it gets SIGTERM or SIGINT.

  --home DIR                the store (default: $BOUGH_HOME, or bough's own place)
  --address ADDRESS         to listen at (default 127.0.0.1); any but this machine's
                            own needs --cert, --key and a token
  --port N                  default 8080; 0: any free one
  --base-path PATH          serve below PATH/v1 too
  --cert FILE, --key FILE   TLS: certificates and key in PEM
  --token-file FILE         tokens with their permissions and limits, mode 0600
  --token TOKEN             one token that may do everything; others can see it in
                            the list of processes. Default: made at random and shown
  --project NAME            requests must carry the header "Project: NAME"
  --image NAME              have this image from the start ("busybox"); repeatable
  --network none|host       what a run gets that asks for a network (default none)
  --limit NAME=VALUE        for tokens that say nothing else; repeatable:
                            instance_max_concurrency, instance_max_timeout,
                            instance_max_layer_bytes, instance_memory, instance_pids,
                            images_import_max_concurrency, images_import_max_timeout,
                            images_import_max_bytes, upload_max_bytes
  --registry HOST           import images from there only; repeatable
  --insecure-registry HOST  a registry without TLS, or on this machine; repeatable
  --connections N           clients at a time (default 4096)
  --log FILE|-|none         where the log goes (default -, standard error);
                            SIGHUP opens FILE anew
  --grace SECONDS           time for what runs, at the end (default 10)
  --spare N, --keeper PATH  as for bough.open
]]

-- What --name becomes: a text, a number, or one more in a list.
local options = {
  home = "text", address = "text", port = "number", ["base-path"] = "text", cert = "text", key = "text",
  ["token-file"] = "text", token = "text", project = "text", image = "list", network = "text", limit = "limit",
  registry = "list", ["insecure-registry"] = "list", connections = "number", log = "text", grace = "number",
  spare = "number", keeper = "text",
}

-- Lists have names of their own in Lua.
local plural = { image = "images", registry = "registries", ["insecure-registry"] = "insecure_registries" }

local function say(text) io.stdout:write(text) end

local function complain(text) io.stderr:write("bough: ", text, "\n") end

local usage_meta = {}

local function misused(fmt, ...) error(setmetatable({ text = fmt:format(...) }, usage_meta), 0) end

local function nearest(name)
  local known = {}
  for option in pairs(options) do known[#known + 1] = option end
  local near = require("bough.error").nearest(name, known)
  return near and (": did you mean --%s?"):format(near) or ""
end

local function take(opts, name, value)
  local kind = options[name]
  local key = plural[name] or name:gsub("-", "_")
  if kind == "list" then
    opts[key] = opts[key] or {}
    table.insert(opts[key], value)
    return
  elseif kind == "limit" then
    local limit, amount = value:match "^([%w_]+)=(.+)$"
    if not limit then misused("--limit %s: write NAME=VALUE", value) end
    require("bough.serve.config").check_limit(limit, "--limit: ")
    opts.limits = opts.limits or {}
    opts.limits[limit] = math.tointeger(tonumber(amount)) or amount
    return
  end
  if opts[key] ~= nil then misused("--%s is given twice", name) end
  if kind == "number" then
    local number = tonumber(value)
    if not number then misused("--%s needs a number, got %q", name, value) end
    value = math.tointeger(number) or number
  end
  opts[key] = value
end

-- "--name value" and "--name=value".
local function parse(args, first)
  local opts, at = {}, first
  while args[at] do
    local name, value = args[at]:match "^%-%-([%w-]+)=(.*)$"
    name = name or args[at]:match "^%-%-([%w-]+)$"
    if args[at] == "-h" then name = "help" end
    if name == "help" then return nil end
    if not name then misused("unexpected argument %q", args[at]) end
    if not options[name] then misused("unknown option --%s%s", name, nearest(name)) end
    if not value then
      at = at + 1
      value = args[at]
      if not value then misused("--%s needs a value", name) end
    end
    take(opts, name, value)
    at = at + 1
  end
  return opts
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function announce(server)
  say(("bough serves %s at %s\n"):format(server.engine:info().home, server.url))
  if server.token then
    say(("\n  export CONTREE_URL=%s\n  export CONTREE_TOKEN=%s\n\n"):format(quote(server.url), server.token))
  end
  io.stdout:flush()
end

-- Acts on signals until the server has ended.
local function obey(server, signals, core)
  local poll <close> = core.poll(signals:fd())
  local asked = false
  while server.state ~= "closed" do
    local name = signals:read()
    if name == "HUP" then
      server:reopen_log()
    elseif name then
      core.spawn(server.stop, server, asked and 0 or nil)
      asked = true
    else
      poll:wait()
    end
  end
end

local function serve(args)
  local opts = parse(args, 2)
  if not opts then
    say(SERVE)
    return 0
  end
  if opts.token then
    if opts.token_file then misused "--token and --token-file exclude each other" end
    opts.tokens, opts.token = { { name = "command line", token = opts.token } }, nil
  end
  if opts.log == nil or opts.log == "-" then
    io.stderr:setvbuf "line"
    opts.log = io.stderr
  elseif opts.log == "none" then
    opts.log = nil
  end
  local good, httpd = pcall(require, "bough.httpd")
  local core = require "bough.core"
  if good then httpd.raise_files() end
  -- before there is any thread that could get them
  local signals <close> = good and httpd.signals { "TERM", "INT", "HUP" } or nil
  core.run(function()
    local server <close> = require("bough").serve(opts)
    announce(server)
    local _ <close> = core.spawn(obey, server, signals, core)
    server:wait()
  end)
  return 0
end

local function usage_of(problem)
  if getmetatable(problem) == usage_meta then return problem.text end
  local errors = require "bough.error"
  if errors.is(problem, "invalid") and (problem.op == "serve" or problem.op == "open") then return problem.message end
  return nil
end

--- Runs the command. Waits for its end.
---@param args string[] as Lua's `arg`
---@return integer status 0; 1 after a failure, 2 for wrong use, each with a line on standard error
function M.main(args)
  local command = args[1]
  if command == "--version" then
    say(("bough %s (%s)\n"):format(VERSION, _VERSION))
    return 0
  elseif command == "--help" or command == "-h" or command == "help" then
    say(USAGE)
    return 0
  end
  if not pcall(require, "bough.core") then
    complain "its module bough.core is not there, or cannot be loaded: run `make` in the source tree"
    return 1
  end
  local good, result = pcall(function()
    if command == "serve" then return serve(args) end
    if command == nil then misused "which command? `bough --help` tells" end
    misused("unknown command %q: `bough --help` tells which there are", command)
  end)
  if good then return result end
  local wrong = usage_of(result)
  complain(wrong or tostring(result))
  return wrong and 2 or 1
end

return M

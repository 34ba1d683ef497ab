--- What is asked of the service: from the spec of a run, a sandbox or a process to the body of a request.
--
-- What the service has no field for is either refused here, or done by programs of the image: `env -u` takes names out
-- of the environment, and the shell joins stderr with stdout.

local core = require "bough.core"
local errors = require "bough.error"
local wire = require "bough.contree.wire"

local M = {}

local raise, quote = errors.raise, errors.quote

--- The most bytes of a stream that the service keeps.
M.MOST_OUTPUT = 10485760
--- The most bytes of stdin that go with one request.
M.MOST_INPUT = 512 * 1024
--- What keeps a sandbox alive: it ends, and well, when its stdin does.
M.HOLD = "read -r _ || :"
--- What is run where only files are to be put in place.
M.NOTHING = ":"

local HOSTNAME = "bough"
local LONGEST = 1 << 31 -- seconds; a time limit beyond is none

-- Refusals -----------------------------------------------------------------------------------------

local function text(value, what, op)
  if not utf8.len(value) then
    raise("unsupported", op, "%s is not UTF-8, and the service takes no other text: %s", what, quote(value))
  end
end

local function refuse_limits(limits, op)
  for name in pairs(limits or {}) do
    if name ~= "disk" then
      raise("unsupported", op, "limits.%s: the service has no such limit: it knows only disk", name)
    end
  end
end

--- Raises `unsupported` for what the service cannot do. Makes no request.
---@param spec table of a run, a sandbox or a process
---@param op string?
function M.check(spec, op)
  if spec.pty then raise("unsupported", op, "pty: this service has no terminals") end
  if spec.network == "host" then
    raise("unsupported", op, 'network = "host": the service has a network of its own, "nat"')
  end
  if spec.cache or spec.cache_key then raise("unsupported", op, "cache: this service keeps no run cache") end
  refuse_limits(spec.limits, op)
  for i, word in ipairs(spec.argv or {}) do text(word, i == 1 and "the program" or "an argument", op) end
  for name, value in pairs(spec.env or {}) do
    text(name, "a name in env", op)
    if value then text(value, "env." .. name, op) end
  end
  if spec.cwd then text(spec.cwd, "cwd", op) end
end

-- Commands -----------------------------------------------------------------------------------------

local function is_line(argv) return #argv == 3 and argv[1] == "/bin/sh" and argv[2] == "-c" end

--- Whether both outputs are to be one stream.
---@param spec table
---@return boolean
function M.is_joined(spec)
  local to = spec.stderr
  return to == core.STDOUT or type(to) == "userdata" and to ~= core.PIPE and rawequal(to, spec.stdout)
end

-- The command as it goes to the service, which may be one that prepares the caller's.
local function prepared(spec)
  local argv = spec.argv
  local joined = M.is_joined(spec)
  local line = is_line(argv)
  if joined then
    argv = line and { "/bin/sh", "-c", "exec 2>&1\n" .. argv[3] }
      or { "/bin/sh", "-c", 'exec "$@" 2>&1', "sh", table.unpack(argv) }
  end
  local gone = {}
  for name, value in pairs(spec.env or {}) do
    if value == false then gone[#gone + 1] = name end
  end
  if not gone[1] then return argv end
  table.sort(gone)
  local words = { "env" }
  for _, name in ipairs(gone) do
    words[#words + 1] = "-u"
    words[#words + 1] = name
  end
  return table.move(argv, 1, #argv, #words + 1, words)
end

local function put_command(body, spec)
  local argv = prepared(spec)
  if is_line(argv) then
    body.command, body.shell = argv[3], true
  else
    body.command, body.shell = argv[1], false
    if argv[2] then body.args = { table.unpack(argv, 2) } end
  end
  local env = {}
  for name, value in pairs(spec.env or {}) do
    if value then env[name] = value end
  end
  if next(env) then body.env = env end
  body.cwd = spec.cwd or "/"
end

-- Streams ------------------------------------------------------------------------------------------

--- What of a stdin goes with the request that starts the command; nil where it has to be fed.
---@param spec table
---@return string?
function M.input(spec)
  local stdin = spec.stdin
  if stdin == nil then return "" end
  return type(stdin) == "string" and #stdin <= M.MOST_INPUT and stdin or nil
end

local function put_stdin(body, spec)
  local input = M.input(spec)
  body.stdin = wire.stream(input or "")
  body.stdin.close = input ~= nil
end

-- Captured output is cut by the service, all else comes through up to the service's own limit. What nobody wants is
-- cut to almost nothing: 0 might be taken for no limit at all.
local function put_truncation(body, spec)
  local least = 1
  for _, name in ipairs { "stdout", "stderr" } do
    local to = spec[name]
    if to == true then
      least = math.max(least, spec.truncate_output_at)
    elseif to and not (name == "stderr" and M.is_joined(spec)) then
      least = M.MOST_OUTPUT
    end
  end
  body.truncate_output_at = math.min(least, M.MOST_OUTPUT)
end

-- Bodies -------------------------------------------------------------------------------------------
--
-- They are made while the caller waits, and hold nothing of his: only who the user is, and for how long a run may go
-- on, is asked for later (`complete`).

local function put_sandbox(body, uuid, spec, files)
  body.image = uuid:lower()
  body.hostname = spec.hostname or HOSTNAME
  body.disposable = spec.disposable or false
  body.networking = { enabled = spec.network == "nat" }
  local disk = spec.limits and math.tointeger(spec.limits.disk)
  if disk then body.resources_limits = { max_layer_bytes = disk } end
  if files and next(files) then body.files = files end
  if spec.timeout and spec.timeout < LONGEST then
    body.timeout = math.max(1, math.tointeger(math.ceil(spec.timeout)))
  end
  return body
end

--- The body that starts a run.
---@param uuid string image
---@param spec table from bough.options
---@param files table? as `staged:spec()` gives it
---@return table
function M.run(uuid, spec, files)
  local body = {}
  put_command(body, spec)
  put_stdin(body, spec)
  put_truncation(body, spec)
  return put_sandbox(body, uuid, spec, files)
end

-- One whose main command is ours.
local function own(command, uuid, spec, files, waits)
  return put_sandbox({
    command = command, shell = true, cwd = "/", stdin = { value = "", encoding = "ascii", close = not waits },
    truncate_output_at = 1,
  }, uuid, spec, files)
end

--- The body that starts a sandbox which hosts processes.
---@param uuid string image
---@param spec table hostname, network, limits, timeout, disposable
---@param files table?
---@return table
function M.sandbox(uuid, spec, files) return own(M.HOLD, uuid, spec, files, true) end

--- The body that makes an image of files put in place.
---@param uuid string image
---@param files table?
---@return table
function M.files(uuid, files) return own(M.NOTHING, uuid, {}, files, false) end

--- The body that starts a process in a sandbox.
---@param spec table
---@return table
function M.process(spec)
  local body = {}
  put_command(body, spec)
  put_stdin(body, spec)
  put_truncation(body, spec)
  return body
end

--- Fills in what was not known at first.
---@param body table
---@param known { uid: integer?, gid: integer?, longest: number?, disk: integer? } longest: seconds that the service
---  allows; disk: bytes, where nothing else was said
---@return table body
function M.complete(body, known)
  body.uid, body.gid = known.uid, known.gid
  if not body.image then return body end -- of a process in a sandbox: the rest is the sandbox's
  local longest = math.tointeger(known.longest)
  if longest and longest > 0 then body.timeout = math.min(body.timeout or longest, longest) end
  if known.disk and not body.resources_limits then
    body.resources_limits = { max_layer_bytes = math.tointeger(known.disk) }
  end
  return body
end

return M

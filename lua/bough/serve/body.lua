--- Bodies that ask for a process: what may be in them, and what comes of it.

local core = require "bough.core"
local check = require "bough.check"
local errors = require "bough.error"
local filespec = require "bough.filespec"
local placing = require "bough.files"
local json = require "bough.json"
local http = require "bough.serve.http"
local validate = require "bough.serve.validate"
local wire = require "bough.contree.wire"

local M = {}

local MOST_ID = 4294967294
local MOST_BYTES = 8 << 20
local MOST_ARGUMENTS = 2 << 20 -- of a command and its environment, as the kernel has it
local OUTPUT_LIMIT = 1 << 20
local MOST_OUTPUT = 10 << 20
local ECHOED = 64 << 10 -- bytes of stdin that are shown again
local TIMEOUT = 60
local LAYER_BYTES = 12 << 30

-- -- single fields ------------------------------------------------------------------------------------------

local function tested(fn, ...)
  local more = { ... }
  return function(value)
    local good, problem = pcall(fn, value, nil, table.unpack(more))
    if good then return value end
    return nil, "is wrong: " .. problem.message
  end
end

local function is_environment(value)
  local good, problem = pcall(check.env, value)
  if not good then return nil, "is wrong: " .. problem.message end
  return value
end

local function is_directory(value)
  if value == "" then return value end
  return tested(check.cwd)(value)
end

-- An upper-case UUID is the same one.
local function is_image(value)
  local tag = value:match "^tag:(.*)$"
  if tag then
    if validate.tag(tag) then return value end
    return nil, "does not name a tag as tags are: tag:NAME"
  end
  if check.is_uuid(value) then return value:lower() end
  return nil, "must be a UUID or tag:NAME"
end

-- Permission bits: "0755", "755", "0o755".
local function is_mode(value)
  local digits = value:match "^0[oO]([0-7]+)$" or value:match "^([0-7]+)$"
  local mode = digits and #digits <= 6 and tonumber(digits, 8)
  if not mode or mode > 4095 then return nil, 'must be permission bits in octal, such as "0755"' end
  return ("%04o"):format(mode)
end

local id = { "integer", min = 0, max = MOST_ID, default = 0 }

local stdin = { "object", fields = {
  value = { "string", required = true, max = MOST_BYTES, nul = true },
  encoding = { "string", max = 32, default = "ascii" },
  close = { "boolean", default = true },
} }

local exec_schema = {
  command = { "string", required = true, min = 1 },
  args = { "array", of = { "string" }, default = {} },
  shell = { "boolean", default = false },
  env = { "map", of = { "string" }, test = is_environment, default = {} },
  cwd = { "string", max = 4096, test = is_directory, default = "" },
  uid = id, gid = id,
  stdin = stdin,
  truncate_output_at = { "integer", min = 0, max = MOST_OUTPUT, default = OUTPUT_LIMIT },
}

local spawn_schema = {
  image = { "string", required = true, max = 300, test = is_image },
  preserve_env = { "boolean", default = false },
  disposable = { "boolean", default = false },
  hostname = { "string", min = 1, max = 64, test = tested(check.hostname), default = "linuxkit" },
  files = { "map", default = {}, of = { "object", fields = {
    uuid = { "string", required = true, test = validate.uuid },
    uid = id, gid = id, mode = { "string", max = 16, test = is_mode, default = "0644" },
  } } },
  timeout = { "integer", min = 1, max = 1 << 40 },
  networking = { "object", fields = { enabled = { "boolean", default = true } } },
  resources_limits = { "object", fields = { max_layer_bytes = { "integer", min = 1, max = 1 << 60 } } },
}
for name, field in pairs(exec_schema) do spawn_schema[name] = field end

-- -- what they say ---------------------------------------------------------------------------------------------

local problem = http.fail

--- The bytes of a ClosableStreamRepr. Raises `invalid` for base64 that is broken.
---@param given { value: string, encoding: string }
---@param where string? for the message
---@return string
function M.bytes(given, where)
  if given.encoding ~= "base64" then return given.value end
  local bytes = core.base64_decode(given.value)
  if not bytes then errors.raise("invalid", nil, "%s is not base64", where or "value") end
  return bytes
end

-- What the kernel would refuse anyway, before it costs anything.
local function check_size(body)
  local size = #body.command
  for _, word in ipairs(body.args) do size = size + #word + 9 end
  for name, value in pairs(body.env) do size = size + #name + #value + 10 end
  if size > MOST_ARGUMENTS then
    errors.raise("invalid", nil, "command, args and env are larger than %d bytes", MOST_ARGUMENTS)
  end
end

-- What the process is to be, for `process.start`.
local function command_of(body)
  check_size(body)
  local argv = { body.command }
  if body.shell then argv = { "/bin/sh", "-c", body.command } end
  table.move(body.args, 1, #body.args, #argv + 1, argv)
  local spec = {
    argv = argv, command = body.command, args = body.args, shell = body.shell, env = body.env,
    cwd = body.cwd ~= "" and body.cwd or nil, uid = body.uid, gid = body.gid, limit = body.truncate_output_at,
  }
  if body.stdin then
    spec.input = M.bytes(body.stdin, "stdin.value")
    spec.keeps_open = not body.stdin.close
  end
  return spec
end

--- The process that a body asks for, ExecSpec. Waits. Raises problems.
---@param request bough.serve.request
---@return table spec for `process.start`
function M.exec(request) return command_of(validate.json(request, exec_schema, MOST_BYTES)) end

--- A ClosableStreamRepr. Waits. Raises problems.
---@param request bough.serve.request
---@return string bytes
---@return boolean close
function M.stdin(request)
  local given = validate.json(request, stdin.fields, MOST_BYTES)
  return M.bytes(given), given.close
end

-- Files as `files` of `boot` takes them.
local function files_of(app, given)
  local files
  for path, file in pairs(given) do
    if path:sub(1, 1) ~= "/" then errors.raise("invalid", nil, "files[%s] is no absolute path", errors.quote(path)) end
    local row = app.journal:file(file.uuid)
    if not row or not app.box.files:exists(row.sha256) then
      problem(404, ("file %s not found"):format(file.uuid), { kind = "not_found" })
    end
    files = files or {}
    files[path] = {
      source = filespec.uploaded { sha256 = row.sha256, size = row.size }, mode = file.mode,
      uid = file.uid, gid = file.gid,
    }
  end
  placing.option(files, "spawn") -- a destination that makes no sense is told now
  return files
end

local function echo_of_stdin(given, bytes)
  if not given then return json.null end
  local shown = wire.stream(bytes:sub(1, ECHOED))
  shown.close = given.close
  if #bytes > ECHOED then shown.truncated = true end
  return shown
end

-- The request as operations show it, with what was left out.
local function echo_of(body, asked, spec)
  return {
    command = body.command, image = asked, args = json.array(body.args), shell = body.shell, env = body.env,
    preserve_env = body.preserve_env, cwd = body.cwd, uid = body.uid, gid = body.gid, disposable = body.disposable,
    hostname = body.hostname, stdin = echo_of_stdin(body.stdin, spec.input), timeout = spec.timeout,
    truncate_output_at = body.truncate_output_at, files = body.files,
    networking = { enabled = not body.networking or body.networking.enabled },
    resources_limits = { max_layer_bytes = spec.layer_bytes },
  }
end

---@class bough.serve.spawn_spec what a run is to be; the fields of a process too
---@field image string uuid or tag
---@field files table? as `boot` takes them
---@field hostname string
---@field networking boolean
---@field disposable boolean
---@field preserve_env boolean
---@field timeout integer seconds
---@field disk integer? bytes it may write, where it asked for less than it may
---@field layer_bytes integer the same, or what it may
---@field echo table of the request

--- The run that a body asks for. Waits. Raises problems.
---@param app table
---@param request bough.serve.request
---@return bough.serve.spawn_spec
function M.spawn(app, request)
  local body = validate.json(request, spawn_schema, MOST_BYTES)
  local limits = request.token.limits
  local spec = command_of(body)
  local most = limits.instance_max_layer_bytes
  local wanted = body.resources_limits and body.resources_limits.max_layer_bytes
  -- a limit costs memory, so where nobody has asked for one there is none
  if most then
    spec.disk = math.min(wanted or most, most)
  elseif wanted and wanted < LAYER_BYTES then
    spec.disk = wanted
  end
  spec.layer_bytes = spec.disk or LAYER_BYTES
  spec.timeout = body.timeout or TIMEOUT
  if limits.instance_max_timeout then spec.timeout = math.min(spec.timeout, limits.instance_max_timeout) end
  spec.image = body.image:match "^tag:(.*)$" or body.image
  spec.hostname, spec.disposable, spec.preserve_env = body.hostname, body.disposable, body.preserve_env
  spec.networking = not body.networking or body.networking.enabled
  spec.echo = echo_of(body, body.image, spec)
  spec.files = files_of(app, body.files)
  return spec
end

return M

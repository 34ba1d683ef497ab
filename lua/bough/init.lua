--- bough: commands in sandboxes whose file systems branch like git.
--
-- Every failure raises an error value (kind, message, op, ...); `require "bough.safe"` is the same API
-- returning nil and that value.

local core = require "bough.core"
local engine = require "bough.engine"
local errors = require "bough.error"
local task = require "bough.task"

---@class bough
local M = {}

--- Opens an engine: nothing, "local", "local:///store" or a path for the embedded one. Waits.
M.open = engine.open

-- tasks and the loop
M.run = core.run
M.spawn = core.spawn
M.sleep = core.sleep
M.step = core.step
M.fd = core.fd
M.timeout = core.timeout
M.deadline = core.deadline
M.on_error = core.on_error
M.all = task.all
M.race = task.race
M.completed = task.completed
M.scope = task.scope

-- errors
M.is_error = core.is_error
M.kinds = core.kinds

--- Where a stream goes: a pipe to the caller (popen), the caller's own, together with stdout, nowhere.
M.PIPE = core.PIPE
M.INHERIT = core.INHERIT
M.STDOUT = core.STDOUT
M.DEVNULL = false

local file_meta = {
  __name = "bough.file",
  __tostring = function(self) return ("file %s"):format(errors.quote(self.path)) end,
}
file_meta.__index = file_meta

local bytes_meta = {
  __name = "bough.bytes",
  __tostring = function(self) return ("%d bytes"):format(#self.content) end,
}
bytes_meta.__index = bytes_meta

local function spec(opts, op, meta, key, value)
  local made = { [key] = value }
  for name, setting in pairs(errors.check_keys(op, opts, { "mode", "uid", "gid", "mtime" })) do
    made[name] = setting
  end
  if made.mode ~= nil and type(made.mode) ~= "string" then
    errors.raise("invalid", op, 'mode must be a string such as "0755" (Lua has no octal numbers), got %s',
      errors.quote(made.mode))
  end
  return setmetatable(made, meta)
end

--- A local file, as stdin of a command or to be put in place.
---@param path string
---@param opts { mode: string?, uid: integer?, gid: integer?, mtime: number? }?
---@return table
function M.file(path, opts)
  if type(path) ~= "string" or path == "" or path:find("\0", 1, true) then
    errors.raise("invalid", "file", "expected a path, got %s", errors.quote(path))
  end
  return spec(opts, "file", file_meta, "path", path)
end

--- Data, as stdin of a command or to be put in place as a file.
---@param content string
---@param opts { mode: string?, uid: integer?, gid: integer?, mtime: number? }?
---@return table
function M.bytes(content, opts)
  if type(content) ~= "string" then
    errors.raise("invalid", "bytes", "expected a string, got %s", errors.quote(content))
  end
  return spec(opts, "bytes", bytes_meta, "content", content)
end

return M

--- `engine.files`: contents in an engine before any image has them.

local check = require "bough.check"
local errors = require "bough.error"
local filespec = require "bough.filespec"
local progress = require "bough.progress"

local M = {}

local raise, quote = errors.raise, errors.quote

local CONTEXT = {}

---@class bough.uploaded
---@field sha256 string
---@field size integer
---@field new boolean? the engine did not have it yet

---@class bough.files
local methods = {}

local function driver(self, op)
  local context = type(self) == "table" and rawget(self, CONTEXT)
  if not context then
    raise("invalid", op, "called on %s instead of engine.files: write engine.files:%s(...)", quote(self), op)
  end
  local handle = context:handle(op)
  if not handle.upload then raise("unsupported", op, "this engine cannot store files yet") end
  return handle
end

--- Stores a content, to be put in place by many runs without being read again. What is not used within a day
--- may go. Waits.
---@param spec any a local path, bough.file, bough.bytes or { content = ... }
---@param opts { on_progress: fun(event: bough.progress_event)? }?
---@return bough.uploaded uploaded a file spec
function methods:upload(spec, opts)
  local handle = driver(self, "upload")
  opts = errors.check_keys("upload", opts, { "on_progress" })
  local on_progress = check.callback(opts.on_progress, "upload", "on_progress")
  local read = filespec.read(spec, "upload", "the file")
  if read.form == "tree" or read.form == "symlink" then
    raise("invalid", "upload", "%s is no content: upload takes files and data", tostring(spec))
  elseif read.form == "digest" then
    return spec
  end
  local item = { kind = "file", [read.form == "content" and "content" or "source"] = read.value }
  local event = { op = "upload", item = item.source }
  return filespec.uploaded(progress.follow(handle:upload(item), on_progress, event))
end

--- Whether the engine has a content. Waits.
---@param sha256 string
---@return boolean
function methods:exists(sha256)
  local handle = driver(self, "exists")
  if type(sha256) ~= "string" or #sha256 ~= 64 or sha256:find("%X") then
    raise("invalid", "exists", "expected a SHA-256 of 64 hexadecimal digits, got %s", quote(sha256))
  end
  return handle:has_file(sha256:lower())
end

local meta = {
  __name = "bough.files",
  __index = methods,
  __tostring = function(self) return ("files of %s"):format(tostring(rawget(self, CONTEXT).engine)) end,
}

function meta.__newindex(_, name)
  raise("invalid", nil, "files.%s: fields of engine.files cannot be set", tostring(name))
end

--- Makes `engine.files`.
---@param context bough.context
---@return bough.files
function M.new(context)
  return setmetatable({ [CONTEXT] = context }, meta)
end

return M

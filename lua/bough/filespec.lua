--- One file spec: a path, bough.file, bough.bytes, bough.dir, bough.symlink, an upload, or a literal table.

local errors = require "bough.error"
local glob = require "bough.glob"
local progress = require "bough.progress"

local M = {}

local raise, quote = errors.raise, errors.quote

local MOST_ID = 4294967294

---@class bough.file_options
---@field mode string? "0755", "rwxr-xr-x" or "keep"; default "0644"
---@field uid integer? default 0
---@field gid integer? default 0
---@field mtime number? seconds since the epoch; default: the local file's, or now

-- -- single values ------------------------------------------------------------------------------

local special = { s = true, S = true, t = true, T = true }

-- "rwxr-sr-t" as a number, or nil.
local function letters_mode(text)
  if not text:find("^[r-][w-][xsS-][r-][w-][xsS-][r-][w-][xtT-]$") then return nil end
  local mode = 0
  for i = 1, 9 do
    local c = text:sub(i, i)
    if c ~= "-" and c ~= "S" and c ~= "T" then mode = mode | 1 << (9 - i) end
    if special[c] then mode = mode | 1 << (12 - i // 3) end
  end
  return mode
end

-- What stands in front of a message about a setting. `where`: nil for an object in the making.
local function at(where) return where and where .. ": " or "" end

-- Permission bits, -1 for "keep", nil for nil.
local function mode_of(value, op, where)
  if value == nil then return nil end
  if type(value) == "number" then
    local example = math.type(value) == "integer" and tostring(value):find("^[0-7][0-7][0-7]$")
      and ("0%d"):format(value) or "0755"
    raise("invalid", op, "%smode = %s is a number, and Lua has no octal numbers: write mode = \"%s\", or"
      .. ' string.format("%%04o", n) for a computed one', at(where), tostring(value), example)
  end
  if value == "keep" then return -1 end
  if type(value) == "string" then
    local digits = value:match("^0?([0-7]?[0-7][0-7][0-7])$")
    local mode = digits and tonumber(digits, 8) or letters_mode(value)
    if mode then return mode end
  end
  raise("invalid", op, '%smode must be a string such as "0755", "rwxr-xr-x" or "keep", got %s', at(where),
    quote(value))
end

local function id_of(value, op, name, where)
  if value == nil then return nil end
  local id = type(value) == "number" and math.tointeger(value)
  if not id or id < 0 or id > MOST_ID then
    raise("invalid", op, "%s%s must be a number from 0 to %d, got %s", at(where), name, MOST_ID, quote(value))
  end
  return id
end

local function mtime_of(value, op, where)
  if value == nil then return nil end
  if type(value) ~= "number" or value ~= value or math.abs(value) > 9e9 then
    raise("invalid", op, "%smtime must be seconds since the epoch, got %s", at(where), quote(value))
  end
  return value
end

--- A string that can be a path.
---@return string
function M.path(value, op, what)
  if type(value) ~= "string" or value == "" then
    raise("invalid", op, "expected %s, got %s", what, value == "" and "an empty string" or quote(value))
  end
  if value:find("\0", 1, true) then
    raise("invalid", op, "expected %s, got one with a NUL byte: %s", what, quote(value))
  end
  return value
end

-- -- the objects --------------------------------------------------------------------------------

local object_keys = { "mode", "uid", "gid", "mtime" }
local tree_keys = { "mode", "uid", "gid", "mtime", "exclude" }
local link_keys = { "uid", "gid", "mtime" }

local function class(name, show)
  local meta = { __name = "bough." .. name, __tostring = show }
  meta.__index = meta
  return meta
end

local metas = {
  file = class("file", function(self) return "file " .. quote(self.path) end),
  bytes = class("bytes", function(self) return progress.size(#self.content) .. " of data" end),
  dir = class("dir", function(self) return "directory " .. quote(self.path) end),
  symlink = class("symlink", function(self) return "symbolic link to " .. quote(self.target) end),
  uploaded = class("uploaded", function(self)
    return ("upload %s… of %s"):format(self.sha256:sub(1, 8), progress.size(self.size or 0))
  end),
}

local function refuse_keep(op, where)
  raise("invalid", op, '%smode = "keep" needs a local file whose mode to keep', at(where))
end

local function object(kind, key, value, opts, keys)
  local made = { [key] = value }
  for name, setting in pairs(errors.check_keys(kind, opts, keys)) do made[name] = setting end
  mode_of(made.mode, kind)
  id_of(made.uid, kind, "uid")
  id_of(made.gid, kind, "gid")
  mtime_of(made.mtime, kind)
  glob.rules(made.exclude, kind, "exclude")
  return setmetatable(made, metas[kind])
end

--- A local file, to be put in place, or as stdin of a command.
---@param path string
---@param opts bough.file_options?
---@return table
function M.file(path, opts)
  return object("file", "path", M.path(path, "file", "a path"), opts, object_keys)
end

--- Data, to be put in place as a file, or as stdin of a command.
---@param content string
---@param opts bough.file_options?
---@return table
function M.bytes(content, opts)
  if type(content) ~= "string" then raise("invalid", "bytes", "expected a string, got %s", quote(content)) end
  local made = object("bytes", "content", content, opts, object_keys)
  if made.mode == "keep" then refuse_keep "bytes" end
  return made
end

--- A local directory with all that is below it. Symbolic links stay links; files and directories keep their
--- permission bits. `exclude`: "*.o" is that name anywhere, "/out" and "a/*.c" are paths in the tree,
--- "build/" is only a directory, "!keep.o" takes back, and the last that matches decides. What is below an
--- excluded directory is not looked at.
---@param path string
---@param opts { exclude: string|string[]|nil, mode: string?, uid: integer?, gid: integer?, mtime: number?
---  }? mode: of the files
---@return table
function M.dir(path, opts) return object("dir", "path", M.path(path, "dir", "a path"), opts, tree_keys) end

--- A symbolic link.
---@param target string what it says; nothing need be there
---@param opts { uid: integer?, gid: integer?, mtime: number? }?
---@return table
function M.symlink(target, opts)
  return object("symlink", "target", M.path(target, "symlink", "a target"), opts, link_keys)
end

--- What an engine tells of an upload, as a file spec.
---@param row { sha256: string, size: integer, new: boolean }
---@return bough.uploaded
function M.uploaded(row) return setmetatable(row, metas.uploaded) end

-- -- one spec --------------------------------------------------------------------------------------

local literal_keys = { "source", "content", "path", "mode", "uid", "gid", "mtime", "exclude" }
local is_literal_key = {}
for _, key in ipairs(literal_keys) do is_literal_key[key] = true end

local function class_of(value)
  local meta = getmetatable(value)
  return type(meta) == "table" and rawget(meta, "__name") or nil
end

local function digest_of(uploaded, op, where)
  local sha256 = uploaded.sha256
  if type(sha256) ~= "string" or not sha256:find("^%x+$") or #sha256 ~= 64 then
    raise("invalid", op, "%s: an upload without its sha256: pass on what files:upload returned", where)
  end
  return sha256:lower()
end

local function unknown_key(key, op, where)
  local near = type(key) == "string" and errors.nearest(key, literal_keys)
  local hint = near and ("did you mean %s?"):format(quote(near))
    or "known are " .. table.concat(literal_keys, ", ")
  raise("invalid", op, "%s: unknown key %s of a file spec: %s", where, quote(key), hint)
end

-- What it is, its content or path, and the table that its settings are in.
local function form_of(spec, op, where)
  local name = class_of(spec)
  if name == "bough.file" then return "file", spec.path, spec end
  if name == "bough.bytes" then return "content", spec.content, spec end
  if name == "bough.dir" then return "tree", spec.path, spec end
  if name == "bough.symlink" then return "symlink", spec.target, spec end
  if name == "bough.uploaded" then return "digest", digest_of(spec, op, where), {} end
  local what = where .. ": a local path"
  if type(spec) == "string" then return "local", M.path(spec, op, what), {} end
  if not M.is_literal(spec) then
    raise("invalid", op, "%s: expected a local path or a file spec (bough.file, bough.bytes,"
      .. " { content = ... }), got %s", where, name and tostring(spec) or quote(spec))
  end
  for key in pairs(spec) do
    if not is_literal_key[key] then unknown_key(key, op, where) end
  end
  if spec.content == nil then
    if class_of(spec.source) == "bough.uploaded" then
      return "digest", digest_of(spec.source, op, where), spec
    end
    return "local", M.path(spec.source, op, what), spec
  elseif spec.source ~= nil then
    raise("invalid", op, "%s has source and content: use one", where)
  elseif type(spec.content) ~= "string" then
    raise("invalid", op, "%s.content must be a string, got %s", where, quote(spec.content))
  end
  return "content", spec.content, spec
end

local function show(form, value)
  if form == "content" then return progress.size(#value) .. " of data" end
  if form == "digest" then return ("upload %s…"):format(value:sub(1, 8)) end
  if form == "symlink" then return "symbolic link to " .. quote(value) end
  return quote(value)
end

--- Whether a plain table is a spec: it says where the content is.
---@param value any
---@return boolean
function M.is_literal(value)
  return type(value) == "table" and getmetatable(value) == nil
    and (value.source ~= nil or value.content ~= nil)
end

---@class bough.file_spec
---@field form "local"|"file"|"tree"|"content"|"digest"|"symlink" local: a file or a tree, as will be seen
---@field value string path, content, digest or target
---@field label string for messages
---@field path string? the destination that a literal table names
---@field mode integer? -1: the local file's
---@field uid integer
---@field gid integer
---@field mtime number?
---@field exclude (fun(path: string, is_dir: boolean): boolean)?

--- Reads a spec and checks all of it. Touches no file.
---@param spec any
---@param op string
---@param where string for messages: `files[1]`
---@return bough.file_spec
function M.read(spec, op, where)
  local form, value, settings = form_of(spec, op, where)
  local read = {
    form = form, value = value, label = show(form, value),
    exclude = glob.rules(settings.exclude, op, where .. ".exclude"),
    mode = mode_of(settings.mode, op, where), mtime = mtime_of(settings.mtime, op, where),
    uid = id_of(settings.uid, op, "uid", where) or 0, gid = id_of(settings.gid, op, "gid", where) or 0,
  }
  if class_of(spec) == nil and settings.path ~= nil then
    read.path = M.path(settings.path, op, where .. ".path: a destination")
  end
  if read.exclude and form ~= "tree" and form ~= "local" then
    raise("invalid", op, "%s.exclude: only directories have something to exclude", where)
  elseif read.mode == -1 and (form == "content" or form == "digest") then
    refuse_keep(op, where)
  end
  return read
end

return M

--- What images:import can be given, and how each of them becomes an image.

local archive = require "bough.archive"
local bring = require "bough.bring"
local check = require "bough.check"
local core = require "bough.core"
local docker_archive = require "bough.docker_archive"
local errors = require "bough.error"
local layout = require "bough.layout"
local manifest = require "bough.manifest"
local progress = require "bough.progress"
local reference = require "bough.reference"
local registry = require "bough.registry"

local M = {}

local raise, quote = errors.raise, errors.quote

local formats = { "directory", "tarball", "oci", "oci-archive", "docker-archive", "registry" }

---@class bough.source_name
---@field kind "busybox"|"directory"|"tarball"|"compressed"|"oci"|"oci-archive"|"docker-directory"
---  |"docker-archive"|"registry"
---@field text string as it was given
---@field path string?
---@field ref string? which image of several

local function exists(path) return core.fs.stat(path) ~= nil end

-- "path" or "path:reference". A colon in the path itself is fine as long as the whole is there.
local function split(text)
  if exists(text) then return text end
  local path, ref = text:match("^([^:]+):(.+)$")
  if path then return path, ref end
  return text
end

local function directory_kind(path)
  if exists(path .. "/oci-layout") and exists(path .. "/index.json") then return "oci" end
  if not exists(path .. "/manifest.json") then return "directory" end
  return archive.kind_of_tree(core.fs.list(path)) == "docker-archive" and "docker-directory" or "directory"
end

-- Asks by opening "path/.", which works for a directory, fails with ENOTDIR for anything else that is
-- there, and never blocks as opening a fifo would.
local function path_kind(path)
  local found, message, number = core.fs.stat(path .. "/.")
  if found then return "directory" end
  if number == 20 then return "file" end
  return nil, { kind = number == 13 and "denied" or "not_found", message = message, errno = number }
end

local function explicit(text, path, kind, op)
  local ref
  if kind == "registry" then
    reference.parse(text, op)
    return { kind = kind, text = text }
  end
  path, ref = split(path)
  local there, trouble = path_kind(path)
  if there == "directory" and kind == "docker-archive" then
    kind = "docker-directory"
  elseif there == "directory" and kind == "oci-archive" then
    kind = "oci"
  elseif there == "file" and kind == "oci" then
    kind = "oci-archive"
  end
  local wants_directory = kind == "directory" or kind == "oci" or kind == "docker-directory"
  if there and (there == "directory") ~= wants_directory then
    raise("invalid", op, "%s is a %s, which cannot have the format %s", quote(path), there, quote(kind))
  end
  return there and { kind = kind, text = text, path = path, ref = ref } or nil, trouble
end

--- Tells what a text names. Waits.
---@param text string
---@param op string
---@param format string? one of `formats`
---@return bough.source_name? nil when it names nothing
---@return { kind: bough.error_kind, message: string, errno: integer }? trouble with a path
function M.find(text, op, format)
  if format ~= nil then
    for _, known in ipairs(formats) do
      if format == known then return explicit(text, text, format, op) end
    end
    errors.unknown(op, "format", format, formats)
  end
  if text == "busybox" then return { kind = "busybox", text = text } end
  local prefix, rest = text:match("^([%a-]+):(.+)$")
  if prefix == "oci" or prefix == "oci-archive" or prefix == "docker-archive" then
    return explicit(text, rest, prefix, op)
  end
  local kind, trouble = path_kind(text)
  if kind == "directory" then
    return { kind = directory_kind(text), text = text, path = text }
  elseif kind == "file" then
    local found = core.fs.stat(text) -- opening a fifo could take for ever
    kind = found and found.kind == "file" and archive.kind(text) or "tarball"
    return { kind = kind, text = text, path = text }
  end
  if trouble.kind ~= "denied" and reference.looks_like(text) then
    return { kind = "registry", text = text }
  end
  return nil, trouble
end

--- The tag that an image from there has unless another is asked for.
---@param name bough.source_name
---@param op string
---@return string?
function M.own_tag(name, op)
  local tag = name.kind == "registry" and reference.parse(name.text, op).name
  return tag and #tag <= 255 and tag or nil
end

--- Raises for what names nothing.
---@param text string
---@param op string
---@param trouble table
function M.missing(text, op, trouble)
  local reason = trouble.kind == "denied" and "permission denied" or "no such directory or archive"
  error(errors.new(trouble.kind, op, { errno = trouble.errno, cause = trouble.message }, "%s: %s",
    quote(text), reason), 0)
end

-- Starts a job and waits for it. Its failures begin with what was given, not with what was made of that.
local function follow(name, opts, op, start)
  local job
  local good, result = pcall(function()
    job = start()
    return progress.follow(job, opts.on_progress, { op = op, item = name.text })
  end)
  if good then return result, job end
  if errors.is(result) and result.op == "import" then
    local own = (name.path or name.text) .. ": "
    if result.message:sub(1, #own) == own then result.message = result.message:sub(#own + 1) end
    result.message = result.message:gsub("^copy: ", ""):gsub("^(copy .*: )copy: ", "%1")
  end
  bring.name_source(result, quote(name.text), opts)
  error(result, 0)
end

-- Returns the job as well: until it is closed, no gc takes the image.
local function tree(handle, kind, name, opts)
  return follow(name, opts, "import", function()
    return handle:import(kind, name.path, {
      tag = opts.tag, max_bytes = opts.max_bytes, max_files = opts.max_files,
    })
  end)
end

local openers = {
  oci = layout.open, ["oci-archive"] = layout.open,
  ["docker-directory"] = docker_archive.open, ["docker-archive"] = docker_archive.open,
}

local function from_directory(handle, kind, directory, name, opts)
  local at = manifest.place(opts.op, quote(name.text))
  local source = openers[kind](directory, at, { ref = name.ref, platform = opts.platform })
  return bring.image(handle, source, opts)
end

-- How much may come for a tree of so many bytes: headers and padding are on top, and not all shrinks.
local function travelling(max_bytes) return max_bytes and max_bytes * 2 + (64 << 20) or nil end

-- The archive is unpacked beside the store first: its layers are in no particular order in it.
local function from_archive(handle, kind, name, opts)
  local scratch <close> = bring.scratch(handle)
  local directory = scratch.path .. "/archive"
  core.fs.mkdir(directory, 448)
  follow(name, opts, "read", function()
    return handle:unpack(name.path, directory, { max_bytes = travelling(opts.max_bytes) })
  end)
  return from_directory(handle, kind, directory, name, opts)
end

-- A compressed file is taken for a root file system, which it is most of the time, and looked at then.
local function from_compressed(handle, name, opts)
  local plain = setmetatable({ tag = false }, { __index = opts })
  local row, job = tree(handle, "archive", name, plain)
  local _ <close> = job
  local kind
  do
    local _ <close> = setmetatable({}, { __close = function()
      if kind ~= "tarball" then handle:remove(row.uuid) end
    end })
    kind = archive.kind_of_tree(handle:list_dir(row.uuid, "/"))
  end
  if kind ~= "tarball" then return from_archive(handle, kind, name, opts) end
  if opts.tag then
    handle:tag(row.uuid, opts.tag)
    row.tag = opts.tag
  end
  return row
end

local function from_registry(handle, name, opts)
  local found <close> = registry.resolve(name.text, {
    op = opts.op, platform = opts.platform, username = opts.username, password = opts.password,
    anonymous = opts.anonymous, insecure = opts.insecure, outside = opts.outside,
    max_bytes = travelling(opts.max_bytes),
  })
  local source = { config = found.config, layers = found.layers }
  function source.get(_, i, directory, on_bytes)
    local path = ("%s/%d"):format(directory, i)
    found:fetch(found.layers[i], path, on_bytes)
    return path
  end
  return bring.image(handle, source, opts)
end

-- By an engine that fetches images itself, and has no other way to get any.
local function by_reference(handle, name, opts)
  if name.kind ~= "registry" then return (tree(handle, name.kind, name, opts)) end
  return (follow(name, opts, "import", function() return handle:import_reference(name.text, opts) end))
end

--- Makes an image of what `M.find` found. Waits.
---@param handle bough.local
---@param name bough.source_name any but busybox
---@param opts table op, tag, max_bytes, max_files, platform, username, password, insecure, outside, timeout,
---  on_progress
---@return bough.row
function M.bring(handle, name, opts)
  local kind = name.kind
  if handle.import_reference then return by_reference(handle, name, opts) end
  if kind == "directory" then return (tree(handle, "directory", name, opts)) end
  if kind == "tarball" or (kind == "compressed" and handle.add_layer == nil) then
    return (tree(handle, "archive", name, opts))
  end
  if handle.add_layer == nil then
    raise("unsupported", opts.op, "%s: this engine cannot take images in layers yet", quote(name.text))
  end
  opts = setmetatable({ name = name.text }, { __index = opts })
  local good, row
  if kind == "compressed" then
    good, row = pcall(from_compressed, handle, name, opts)
  elseif kind == "registry" then
    good, row = pcall(from_registry, handle, name, opts)
  elseif kind == "oci" or kind == "docker-directory" then
    good, row = pcall(from_directory, handle, kind, name.path, name, opts)
  else
    good, row = pcall(from_archive, handle, kind, name, opts)
  end
  if good then return row end
  if errors.is(row) and not bring.is_interruption(row) and not check.is_foreign(row) then
    row.op = opts.op -- not the name of the step that failed
  end
  error(row, 0)
end

return M

--- What a file with an image in it is: a root file system as a tarball, a docker archive, an OCI layout.
--
-- The names in a plain tar tell; nothing but its headers is read. What is compressed cannot be looked into
-- from here.

local M = {}

local MOST_HEADERS = 4096
local BLOCK = 512

local magics = { "\x1f\x8b", "\x28\xb5\x2f\xfd", "\xfd7zXZ\0", "BZh", "\x04\x22\x4d\x18" }

-- Directories that docker, skopeo, buildah and their like write; nothing else has them.
local function of_image(top)
  return top == "blobs" or top == "refs" or top == "ingest" or top:find("^%x+$") ~= nil and #top == 64
end

-- What is known of the names seen so far.
local seen = {}
seen.__index = seen

-- Takes one in; false when this is a tree like any other.
function seen:add(name, is_dir)
  local top, more = name:match("^([^/]+)(/?)")
  if not top then return true end
  if (is_dir or more == "/") and not of_image(top) then return false end
  self.names[name] = true
  local is_config = name ~= "manifest.json" and name:find("^[^/]+%.json$") ~= nil
  self.content = self.content or of_image(top) or is_config
  return true
end

function seen:kind()
  if self.names["oci-layout"] and self.names["index.json"] then return "oci-archive" end
  return self.content and self.names["manifest.json"] and "docker-archive" or "tarball"
end

local function nothing_seen() return setmetatable({ names = {}, content = false }, seen) end

--- Tells the same from the list of a directory.
---@param entries { name: string, kind: string }[]
---@return "docker-archive"|"oci-archive"|"tarball"
function M.kind_of_tree(entries)
  local found = nothing_seen()
  for _, entry in ipairs(entries) do
    if not found:add(entry.name, entry.kind == "dir") then return "tarball" end
  end
  return found:kind()
end

local function number(field)
  if field:byte() == 0x80 then return (string.unpack(">I8", field, 5)) end
  return tonumber(field:match("^[ 0]*([0-7]*)") or "", 8) or 0
end

local function checksum_fits(block)
  local sum = 8 * 32
  for i = 1, BLOCK do
    if i < 149 or i > 156 then sum = sum + block:byte(i) end
  end
  return number(block:sub(149, 156)) == sum
end

--- Looks into a regular file.
---@param path string
---@return "docker-archive"|"oci-archive"|"tarball"|"compressed"
function M.kind(path)
  local file <close> = io.open(path, "rb")
  if not file then return "tarball" end -- whoever opens it next says why it cannot be read
  local found = nothing_seen()
  for i = 1, MOST_HEADERS do
    local block = file:read(BLOCK)
    if i == 1 and block then
      for _, magic in ipairs(magics) do
        if block:sub(1, #magic) == magic then return "compressed" end
      end
    end
    if not block or #block < BLOCK or block:byte() == 0 or not checksum_fits(block) then break end
    local name = block:match("^[^\0]*"):sub(1, 100):gsub("^%./", "")
    local kind, size = block:sub(157, 157), number(block:sub(125, 136))
    -- those four speak of the entry after them; a root's tarball ends the search at its first directory
    if not kind:find("[xgLK]") and not found:add(name, kind == "5") then return "tarball" end
    if size < 0 or size > 1 << 50 or not file:seek("cur", (size + BLOCK - 1) // BLOCK * BLOCK) then break end
  end
  return found:kind()
end

return M
